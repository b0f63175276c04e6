"""What the data looks like: a contact sheet to see, and a data card to read.

Both read folders in the bring-your-own format (``mor.data.schema``), so they show what was written, not what was meant.
Every number of the card is counted from the files; only ``error_rate`` is the setting that made them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import NamedTuple, TypeVar

from jinja2 import Environment, StrictUndefined
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from mor.config import HELD_OUT
from mor.data.pictures import leaves
from mor.data.schema import Asked, Preference, Prompt, Question, load_images, read_rows
from mor.fedvqa.annotator import STYLES, in_style
from mor.fedvqa.write import MARKER, image_digest
from mor.text import words

Item = TypeVar("Item")
SCALE = 2  # the sheet is drawn at twice its nominal size, for sharp screens
WIDTH, MARGIN, GAP, TILE = 920, 20, 14, 128  # nominal pixels
INK, QUIET, GREEN, RED, RULE = "#26292e", "#6b7078", "#1a7f4b", "#b3372f", "#e3e5e8"
DOMAINS = {
    "documents": "real handwriting: two-digit numbers, alone, in a two-field form or on a coloured label",
    "medical": "scan phantoms drawn by program: how many bright findings, on which side, of what size",
    "scenes": "one to four coloured shapes drawn by program: colour and shape in a corner, number, left or right of another",
    HELD_OUT: "handwritten numbers in two coloured bands, asked for by colour; no client holds such data",
}


class _Line(NamedTuple):
    text: str
    colour: str
    bold: bool = False


_Sample = tuple[Image.Image, list[_Line]]


def contact_sheet(clients: Mapping[str, Path], held_out: Path | None = None, *, samples: int = 5) -> Image.Image:
    """A row of samples a client, of each kind of pair in turn, and one of the held-out suite; RGB, about 1840 px wide.

    ``clients`` maps names to folders that hold ``preferences.jsonl``; ``held_out`` is a suite's ``.jsonl`` file, left
    out if there is none. The sheet is shown around, so a folder that holds somebody's own data, a client's whose deliveries
    were merged among them, is left out too. Raises ``DataError`` for a file that cannot be read.
    """
    rows = {client: _preference_samples(folder, samples) for client, folder in clients.items() if _is_generated(folder)}
    if held_out is not None and held_out.exists() and _is_generated(held_out.parent):
        questions = _spread(read_rows(held_out, Question), samples)
        images = load_images(held_out.parent, questions)
        rows[words(held_out.stem)] = [
            (image, [_Line(q.prompt, INK, bold=True), _Line(q.answer, GREEN)])
            for q, image in zip(questions, images, strict=True)
        ]
    column = (WIDTH - 2 * MARGIN - GAP * (samples - 1)) // samples
    rows = {name: [(image, _laid_out(lines, column)) for image, lines in row] for name, row in rows.items()}
    heights = [HEADING + TILE + 8 + LEADING * max((len(lines) for _, lines in row), default=0) + AFTER for row in rows.values()]
    sheet = Image.new("RGB", (WIDTH * SCALE, (2 * MARGIN + sum(heights)) * SCALE), "white")
    draw, y = ImageDraw.Draw(sheet), MARGIN
    for (name, row), height in zip(rows.items(), heights, strict=True):
        _draw_row(sheet, draw, y, name, row, column)
        y += height
    return sheet


def _is_generated(folder: Path) -> bool:
    """Whether the fedvqa stage wrote it: made-up data, which may be shown."""
    return (folder / MARKER).exists()


def _preference_samples(folder: Path, samples: int) -> list[_Sample]:
    by_kind: dict[str | None, list[Preference]] = defaultdict(list)
    for row in read_rows(folder / "preferences.jsonl", Preference):
        by_kind[row.kind].append(row)
    turns = [_spread(by_kind[kind], samples) for kind in sorted(by_kind, key=str)]
    pairs = [turn[i] for i in range(samples) for turn in turns if i < len(turn)][:samples]
    shown = []
    for pair, image in zip(pairs, load_images(folder, pairs), strict=True):
        lines = [_Line(pair.prompt, INK, bold=True), _Line(f"✓ {pair.chosen}", GREEN), _Line(f"✗ {pair.rejected}", RED)]
        shown.append((image, lines + ([_Line(f"{pair.kind} pair", QUIET)] if pair.kind else [])))
    return shown


def _spread(items: Sequence[Item], n: int) -> list[Item]:
    """At most ``n`` items, evenly spaced."""
    n = min(n, len(items))
    return [items[i * len(items) // n] for i in range(n)]


def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the font of the plots, on every machine."""
    found = findfont(FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal"))
    return ImageFont.truetype(found, round(size * SCALE))


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float, most: int = 4) -> list[str]:
    """Lines of ``text`` no wider than ``width`` nominal pixels; at most ``most``, the last one cut short."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width * SCALE or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cut = len(lines) > most
    lines = lines[:most]
    for i, line in enumerate(lines):
        end = "…" if cut and i == most - 1 else ""
        if font.getlength(line + end) > width * SCALE:
            end = "…"
            while line and font.getlength(line + end) > width * SCALE:
                line = line[:-1]
        lines[i] = line + end
    return lines


LEADING, HEADING, AFTER = 16, 30, 22  # nominal pixels: a line of text, a row's heading, the space below a row


def _laid_out(lines: Sequence[_Line], width: int) -> list[_Line]:
    return [line._replace(text=text) for line in lines for text in _wrap(line.text, _font(11.5, line.bold), width)]


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, y: int, name: str, row: Sequence[_Sample], column: int) -> None:
    title, about = _font(14, bold=True), DOMAINS.get(name.replace(" ", "_"), "")
    draw.text((MARGIN * SCALE, y * SCALE), name, INK, title)
    draw.text((MARGIN * SCALE + title.getlength(name + "  "), (y + 2.5) * SCALE), about, QUIET, _font(11.5))
    draw.line((MARGIN * SCALE, (y + 22) * SCALE, (WIDTH - MARGIN) * SCALE, (y + 22) * SCALE), RULE, SCALE)
    for i, (image, lines) in enumerate(row):
        x, below = MARGIN + i * (column + GAP), y + HEADING
        sheet.paste(_enlarged(image), (x * SCALE, below * SCALE))
        for number, line in enumerate(lines):
            at = (x * SCALE, (below + TILE + 8 + LEADING * number) * SCALE)
            draw.text(at, line.text, line.colour, _font(11.5, line.bold))


def _enlarged(image: Image.Image) -> Image.Image:
    """Fitted into a tile: small images enlarged with square pixels, large ones reduced smoothly."""
    factor = TILE * SCALE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS)


# --- the data card -------------------------------------------------------------------------------------------------


def data_card(
    clients: Mapping[str, Path], public: Path, evaluation: Path, *, styles: Mapping[str, str], error_rate: float
) -> str:
    """Markdown: what the data is, how much of it there is, who judged it, where it comes from, what it is not for.

    ``clients`` maps names to folders; ``public`` and ``evaluation`` are the server's folders. ``styles`` maps the
    embedded clients to their house styles, and ``error_rate`` is their annotators' set share of mistakes. Raises
    ``DataError`` for a file that cannot be read.
    """
    private = {client: read_rows(folder / "preferences.jsonl", Preference) for client, folder in clients.items()}
    prompts = read_rows(public / "prompts.jsonl", Prompt)
    suites = {path.stem: read_rows(path, Question) for path in sorted(evaluation.glob("*.jsonl"))}
    pairs = {path.stem: read_rows(path, Preference) for path in sorted((evaluation / "pairs").glob("*.jsonl"))}
    generated = [client for client, folder in clients.items() if _is_generated(folder)]  # of others only rows are counted
    images = {client: _digests(clients[client], rows) for client, rows in private.items()}
    images["public prompts"] = _digests(public, prompts)
    images["evaluation"] = _digests(evaluation, [*chain(*suites.values(), *pairs.values())])
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"words": words, "cell": _cell}
    return environment.from_string(Path(__file__).with_name("data_card.md.j2").read_text()).render(
        domains=[*dict.fromkeys((*clients, *suites))],
        about=DOMAINS,
        private=private,
        prompts=Counter(prompt.category or "no category" for prompt in prompts),
        suites={suite: Counter(row.category for row in rows) for suite, rows in suites.items()},
        pairs=pairs,
        kinds={client: Counter(row.kind for row in private[client] if row.kind) for client in generated},
        styles={client: styles[client] for client in generated if client in styles},
        in_style=in_style,
        made_up=bool(generated) or _is_generated(public) or _is_generated(evaluation),
        error_rate=error_rate,
        contradicted={client: _contradicted(private[client], styles[client]) for client in generated if client in styles},
        images={name: len(found) for name, found in images.items()},
        shared={(a, b): n for a, b in combinations(images, 2) if (n := len(images[a] & images[b]))},
    )


def _contradicted(rows: Sequence[Preference], house: str) -> str:
    """The share of style pairs whose chosen answer is not in the house style: mistakes that can be counted."""
    chosen = [style_of(row.chosen) for row in rows if row.kind == "style"]
    return f"{100 * sum(style != house for style in chosen) / len(chosen):.1f} % of {len(chosen)}" if chosen else "not known"


def style_of(text: str) -> str:
    """The style of a well-formed answer: the most specific template that it fits."""
    ends: dict[str, list[str]] = {style: template.split("{}") for style, template in STYLES.items()}
    fitting = [style for style, (before, after) in ends.items() if text.startswith(before) and text.endswith(after)]
    return max(fitting, key=lambda style: len(STYLES[style]))  # terse, the bare value, fits every text


def _digests(folder: Path, rows: Sequence[Asked]) -> set[str]:
    """Content digests of the image files that ``rows`` name."""
    files = (folder / image for image in {row.image for row in rows} if not leaves(image))
    return {image_digest(file.read_bytes()) for file in files if file.is_file()}


def _cell(text: str) -> str:
    """``text`` made safe for a cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
