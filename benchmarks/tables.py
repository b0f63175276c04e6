"""The benchmark's tables, for the README, the terminal and the report, from ``benchmarks.results``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.catalogue import DEFAULT, MIXTURES, MOR, SEARCH, SETTINGS
from benchmarks.claims import MISSING, Claim, best_router, signed, three_digits, two_digits
from benchmarks.results import CONFIDENCE, MEAN, WORST, Entry, Results, by_group
from mor.config import HELD_OUT
from mor.evaluation.statistics import Interval
from mor.text import words
from tasks.reports.units import in_bytes, in_time


class Cell(NamedTuple):
    """A table's cell: ``detail`` is its interval, ``tone`` one of up, down, even or nothing."""

    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Cells for any medium: rows in named groups, the first cell of a row its name."""

    title: str
    note: str
    header: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]]


Column = tuple[str, Callable[[Entry], Cell]]
IN_SHORT = ("mor", "uniform", "variance", "fedavg_sft_a", "fedavg_sft_b", "oracle", "centralised", "base")  # the README's rows


def build_tables(results: Results, checked: Sequence[Claim]) -> dict[str, Table]:
    """Every table that has rows, by name: claims, headline, settings, setting.<name>, ablation, search, cost."""
    found, asked = {"claims": claims_table(results, checked)}, results.settings()
    if DEFAULT in asked:
        found["headline"] = setting_table(results, DEFAULT)
    if others := [setting for setting in asked if setting not in (DEFAULT, SEARCH)]:
        found["settings"] = settings_table(results, others)
        found |= {f"setting.{setting}": setting_table(results, setting) for setting in others}
    if kin := [entry for entry in results.entries(DEFAULT) if entry.shown.group in (MOR, MIXTURES) or entry.method == "oracle"]:
        columns = [*_summary_columns(results), _bytes_up(results), _mor_minus(results)]
        found["ablation"] = _tabulate("Ablation: mixtures and routers", _basis(results, DEFAULT), by_group(kin), columns)
    if SEARCH in asked:
        found["search"] = search_table(results)
    if any(row.measure in ("up_bytes", "seconds") for row in results.rows if row.setting == DEFAULT):
        found["cost"] = cost_table(results)
    return found


def setting_table(results: Results, setting: str) -> Table:
    """Preference by client and summary, accuracy and KL of every method; ``mor`` less each, and each less its default."""
    columns = [(words(client), _share(results, f"preference.{client}")) for client in results.clients(setting)]
    columns += [*_summary_columns(results), _mor_minus(results)]
    groups, note = by_group(results.entries(setting)), _basis(results, setting)
    if setting == DEFAULT:
        return _tabulate("Headline", note, groups, columns)
    note = f"{SETTINGS.get(setting, '')} {note}".strip()
    return _tabulate(f"Setting: {words(setting)}", note, groups, [*columns, _minus_default(results)])


def settings_table(results: Results, settings: Sequence[str]) -> Table:
    """Every method in every one of ``settings``, in short: a group a setting."""
    seeds: Column = "seeds", lambda entry: Cell(f"{len(results.seeds(entry, MEAN))}")
    columns = [seeds, *_summary_columns(results), _mor_minus(results), _minus_default(results)]
    groups = [(f"{words(name)}: {SETTINGS.get(name, '')}", results.entries(name)) for name in settings]
    note = "Share of preferred answers over so many seeds; 95 % paired two-level bootstrap intervals."
    return _tabulate("Other settings", note, groups, columns)


def search_table(results: Results) -> Table:
    """All that the search measured; the rate of the largest mean preference is marked."""
    entries = results.entries(SEARCH)
    best = {results.best(same) for _, same in groupby(entries, key=lambda entry: entry.method)}
    columns: list[Column] = [
        ("learning rate", lambda entry: Cell(f"{entry.learning_rate:g}")),
        ("chosen", lambda entry: Cell("✓" if entry in best else "")),
        *_summary_columns(results),
    ]
    return _tabulate("Learning-rate search", f"All that was tried. {_basis(results, SEARCH)}", by_group(entries), columns)


def cost_table(results: Results) -> Table:
    """Bytes a client and seconds in the default setting, means over the seeds."""
    parts = dict.fromkeys(row.suite for row in results.rows if row.setting == DEFAULT and row.measure == "seconds")
    columns = [_bytes_up(results), ("down a client", _plain(results, "down_bytes.mean", in_bytes))]
    last = sorted(parts, key=lambda part: part == "total")
    columns += [(words(part), _plain(results, f"seconds.{part}", in_time)) for part in last]
    note = (
        "Bytes over the whole run, mean of the clients that took part; pooling data for the centralised reward model "
        "is not counted. Times are computing times, all clients' added up; a method that trains no reward model has none."
    )
    return _tabulate("Cost", note, by_group(results.entries(DEFAULT)), columns)


def short_table(results: Results, checked: Sequence[Claim]) -> Table:
    """The headline in a few rows and columns, and in its note how many of the claims are met."""
    columns = [*_share_columns(results), ("up per client", _plain(results, "up_bytes.mean", in_bytes))]
    counts = Counter(claim.verdict for claim in checked)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("met", "missed", "reported", MISSING) if counts[verdict])
    note = f"{_basis(results, DEFAULT)} Of {len(checked)} claims: {said}."
    return _tabulate("In short", note, [("", [e for e in results.entries(DEFAULT) if e.method in IN_SHORT])], columns)


def claims_table(results: Results, checked: Sequence[Claim]) -> Table:
    """Every claim with its bar, its number and its verdict, the missed ones like the met ones."""
    tones = {"met": "up", "missed": "down"}
    rows = []
    for claim in checked:
        bar = "none" if claim.bar is None else f"≥ {claim.bar:.{2 * (claim.bar < 10)}f}".replace("-", "−")
        verdict = Cell(claim.verdict, claim.remark, tones.get(claim.verdict, "even"))
        bounds = Cell(bar, "intervals apart" if claim.apart else "")
        rows.append([Cell(claim.text), bounds, _cell(claim.measured, claim.show), verdict])
    best = best_router(results).shown.label
    note = (
        f"Every claim that was to be checked, met or not. In the default setting they are about {best}, the best of MoR's "
        "routers by mean preference, chosen with hindsight. The verdict follows the measured number; where the bar says so, "
        "the two methods' own 95 % intervals must lie apart too. A loss of at most 0.03 reads ≥ −0.03."
    )
    return Table("Claims", note, ["claim", "bar", "measured", "verdict"], [("", rows)])


def _tabulate(title: str, note: str, groups: Iterable[tuple[str, Iterable[Entry]]], columns: Sequence[Column]) -> Table:
    """A row an entry, which begins with its method's name."""
    rows = [
        (group, [[Cell(entry.shown.label), *(cell(entry) for _, cell in columns)] for entry in entries])
        for group, entries in groups
    ]
    return Table(title, note, ["method", *(name for name, _ in columns)], rows)


def _share_columns(results: Results) -> list[Column]:
    shares = {"mean": MEAN, "worst": WORST, "held-out": f"preference.{HELD_OUT}", "accuracy": "accuracy.mean"}
    return [(name, _share(results, quantity)) for name, quantity in shares.items()]


def _summary_columns(results: Results) -> list[Column]:
    return [*_share_columns(results), ("KL", lambda entry: _cell(results.interval(entry, "kl.all"), two_digits, "–"))]


def _share(results: Results, quantity: str) -> Callable[[Entry], Cell]:
    return lambda entry: _cell(results.interval(entry, quantity), three_digits)


def _plain(results: Results, quantity: str, number: Callable[[float], str]) -> Callable[[Entry], Cell]:
    """A mean over seeds without an interval; a dash where there is none by nature."""
    return lambda entry: Cell(number(known.value) if (known := results.estimate(entry, quantity)) else "–")


def _bytes_up(results: Results) -> Column:
    return "up a client", _plain(results, "up_bytes.mean", in_bytes)


def _mor_minus(results: Results) -> Column:
    """``mor`` less each entry of its setting; nothing for itself."""
    return (
        "MoR minus it",
        lambda entry: Cell("") if entry.method == "mor" else _difference(results, Entry(entry.setting, "mor"), entry),
    )


def _minus_default(results: Results) -> Column:
    """Each entry less its own in the default setting."""
    return "minus its default", lambda entry: _difference(results, entry, Entry(DEFAULT, entry.method))


def _difference(results: Results, first: Entry, second: Entry) -> Cell:
    """``first`` less ``second`` in mean preference."""
    if (difference := results.difference(first, second, MEAN)) is None:
        return _cell(None, signed)
    interval = difference.interval(CONFIDENCE)
    return _cell(interval, signed)._replace(tone="up" if interval.low > 0 else "down" if interval.high < 0 else "even")


def _cell(interval: Interval | None, number: Callable[[float], str], missing: str = MISSING) -> Cell:
    if interval is None:
        return Cell(missing, tone="even")
    between = " to " if number is signed else "–"
    ends = number(interval.low), number(interval.high)
    return Cell(number(interval.value), between.join(ends) if interval.low < interval.high else "")


def _basis(results: Results, setting: str) -> str:
    """What the numbers of a setting rest on, in words."""
    asked = [row for row in results.rows if row.setting == setting and row.measure == "preference"]
    seeds, sizes = ({row.seed for row in asked}, {row.n for row in asked})
    counted = {len({row.seed for row in asked if row.method == method}) for method in {row.method for row in asked}}
    fewer = f" ({min(counted)} of them for some methods)" if len(counted) > 1 else ""
    many = "one seed, whose intervals speak of its questions alone" if len(seeds) == 1 else f"{len(seeds)} seeds{fewer}"
    questions = " to ".join(f"{n}" for n in sorted({min(sizes), max(sizes)}))
    return f"Share of preferred answers; {many}, {questions} questions a suite; 95 % paired two-level bootstrap intervals."


# --- media ------------------------------------------------------------------------------------------------------------


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown with its title and note."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    lines = [line(table.header), line("---" for _ in table.header)]
    for group, rows in table.groups:
        if group:
            lines.append(line([f"**{group}**", *("" for _ in table.header[1:])]))
        lines += [line(f"{cell.text} ({cell.detail})" if cell.detail else cell.text for cell in row) for row in rows]
    return f"### {table.title}\n\n{table.note}\n\n" + "\n".join(lines) + "\n"


def markdown_tables(results: Results, checked: Sequence[Claim]) -> str:
    """Every table of ``build_tables`` for a page of the documentation."""
    return "\n".join(map(markdown, build_tables(results, checked).values()))


def console_table(table: Table) -> RichTable:
    """The table for a terminal: an interval stands below its number."""
    styles = {"up": "green", "down": "red", "even": "dim", "": ""}
    looks: dict[str, Any] = {"box": box.SIMPLE_HEAD, "title_justify": "left", "collapse_padding": True, "pad_edge": False}

    def text(cell: Cell) -> Text:
        return Text.assemble(cell.text, (f"\n{cell.detail}" if cell.detail else "", "dim"), style=styles[cell.tone])

    shown = RichTable(*table.header, title=table.title, **looks)
    for group, rows in table.groups:
        if group:
            shown.add_row(Text(group, style="bold"))
        for row in rows:
            shown.add_row(*map(text, row))
        shown.add_section()
    return shown


def console_tables(results: Results, checked: Sequence[Claim]) -> Group:
    """The headline and the claims; those that nothing was measured for are only counted."""
    measured = [claim for claim in checked if claim.measured]
    tables = [setting_table(results, DEFAULT)] if DEFAULT in results.settings() else []
    left = f"{len(checked) - len(measured)} further claims are not measured yet." if len(measured) < len(checked) else ""
    return Group(*map(console_table, [*tables, claims_table(results, measured)]), Text(left, style="dim"))
