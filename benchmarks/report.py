"""The benchmark's report: figures as PNG, and one HTML page with every figure and table inside it.

The style sheet is that of the run's own report.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks.catalogue import DEFAULT, SETTINGS, ClientChange, display_order, find_method, setting_meaning
from benchmarks.claims import MISSING, Claim, check_claims
from benchmarks.figures import draw_figures
from benchmarks.results import MEAN, WORST, Entry, Measurement, Results
from benchmarks.tables import build_tables
from mor.files import write_whole
from tasks.reports import page
from tasks.reports.figures import in_bytes, words

DPI = 200  # figures are 8 inches wide: twice the 800 pixels at which they are read
STYLED = Path(page.__file__).with_name("report.html.j2")


def write_page(
    rows: Iterable[Measurement],
    folder: Path,
    html: Path,
    *,
    weak: Collection[str] = (),
    changes: Mapping[str, ClientChange] | None = None,
) -> Results:
    """Write the figures as PNG into ``folder`` and the page to ``html``; returns the results, for tables on the terminal.

    ``weak`` names the weak clients of the setting of that name; ``changes`` says, by setting, what the adaptation figure
    shows: without it, the weight that moves most.
    """
    results = Results(rows)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for drawing in draw_figures(results, changes or {}):
        path = folder / f"{drawing.name}.png"
        drawing.figure.savefig(path, dpi=DPI, metadata={"Software": None})  # the same figure gives the same bytes
        drawings.append((drawing, path.read_bytes()))
    write_whole(html, render(results, drawings, weak))
    return results


def render(results: Results, drawings: Sequence[tuple[page.Drawing, bytes]], weak: Collection[str] = ()) -> str:
    """The page; ``drawings`` come with their PNGs."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Callable[..., Any]] = {
        "inline": lambda png: Markup("data:image/png;base64,") + b64encode(png).decode(),
        "words": words,
    }
    environment.filters |= filters
    style, _, _ = STYLED.read_text(encoding="utf-8").partition("<style>")[2].partition("</style>")
    asked = [entry for setting in results.settings() for entry in results.entries(setting)]
    ordered = map(
        find_method, sorted({method for _, method, _ in asked} | {row.method for row in results.rows}, key=display_order)
    )
    present = {row.setting for row in results.rows}
    return environment.get_template("report.html.j2").render(
        style=Markup(style),
        tiles=tiles(results, check_claims(results, weak)),
        tables=build_tables(results, weak),
        drawings={drawing.name: (drawing, png) for drawing, png in drawings},
        methods=[(group, list(same)) for group, same in groupby(ordered, key=lambda method: method.group)],
        settings={name: setting_meaning(name) for name in dict.fromkeys([*SETTINGS, *sorted(present)]) if name in present},
        clients=results.clients(DEFAULT),
    )


def tiles(results: Results, checked: Sequence[Claim]) -> list[tuple[str, str]]:
    """The shortest summary: numbers with their meaning."""
    verdicts = [claim.verdict for claim in checked]
    decided = verdicts.count("met") + verdicts.count("missed")
    missing = verdicts.count(MISSING)
    met = "measured claims are met" + (f"; {missing} are not measured" if missing else "")
    found = [(f"{verdicts.count('met')} of {decided}", met)]
    for quantity, say in ((MEAN, "mean preference"), (WORST, "worst client's preference")):
        pair = results.paired(Entry(DEFAULT, "base"), Entry(DEFAULT, "mor"), quantity)
        if pair:
            found.append((f"{pair[0].value:.2f} → {pair[1].value:.2f}", f"{say}, base → MoR"))
    if sent := results.estimate(Entry(DEFAULT, "mor"), "up_bytes.mean"):
        found.append((in_bytes(sent.value), "leave a client in MoR's whole run"))
    return found
