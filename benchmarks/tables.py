"""The benchmark's tables, for the README, the terminal and the report, from ``benchmarks.results``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.catalogue import DEFAULT, METHODS, MIXTURES, MOR, SEARCH, find_method, setting_meaning
from benchmarks.claims import MISSING, Claim, best_router, check_claims, signed, three_digits, two_digits
from benchmarks.results import CONFIDENCE, MEAN, WORST, Entry, Results
from mor.config import HELD_OUT
from mor.evaluation.statistics import Estimate, Interval
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


def build_tables(results: Results, weak: Collection[str] = ()) -> dict[str, Table]:
    """Every table that has rows, by name: claims, headline, settings, setting.<name>, ablation, search, cost."""
    found = {"claims": claims_table(results, check_claims(results, weak))}
    for setting in results.settings():
        if setting == SEARCH:
            found["search"] = search_table(results)
        else:
            found["headline" if setting == DEFAULT else f"setting.{setting}"] = setting_table(results, setting)
    if set(results.settings()) - {DEFAULT, SEARCH}:
        found["settings"] = settings_table(results)
    kin = [method for method in METHODS if find_method(method).group in (MOR, MIXTURES) or method == "oracle"]
    if compared := [entry for entry in results.entries(DEFAULT) if entry.method in kin]:
        columns = [*_summary_columns(results), _bytes_up(results), _mor_minus(results)]
        found["ablation"] = _tabulate("Ablation: mixtures and routers", _basis(results, DEFAULT), compared, columns)
    if any(row.measure in ("up_bytes", "seconds") for row in results.rows if row.setting == DEFAULT):
        found["cost"] = cost_table(results)
    each = [name for name in found if name.startswith("setting.")]
    order = ["claims", "headline", "settings", *each, "ablation", "search", "cost"]
    return {name: found[name] for name in order if name in found}


def setting_table(results: Results, setting: str) -> Table:
    """Preference by client and summary, accuracy and KL of every method; ``mor`` less each, and each less its default."""
    columns = [(words(client), _share(results, f"preference.{client}")) for client in results.clients(setting)]
    columns += [*_summary_columns(results), _mor_minus(results)]
    if setting == DEFAULT:
        return _tabulate("Headline", _basis(results, setting), results.entries(setting), columns)
    note = f"{setting_meaning(setting)} {_basis(results, setting)}".strip()
    columns.append(_minus_default(results))
    return _tabulate(f"Setting: {words(setting)}", note, results.entries(setting), columns)


def settings_table(results: Results) -> Table:
    """Every method in every setting but the default, in short: a group a setting."""
    columns: list[Column] = [
        ("seeds", lambda entry: Cell(f"{len(results.seeds(entry, MEAN))}")),
        *_summary_columns(results),
        _mor_minus(results),
        _minus_default(results),
    ]
    groups = [
        (f"{words(setting)}: {setting_meaning(setting)}", [_row(entry, columns) for entry in results.entries(setting)])
        for setting in results.settings()
        if setting not in (DEFAULT, SEARCH)
    ]
    note = "Share of preferred answers over so many seeds; 95 % paired two-level bootstrap intervals."
    return Table("Other settings", note, ["method", *(name for name, _ in columns)], groups)


def search_table(results: Results) -> Table:
    """All that the search measured; the rate of the largest mean preference is marked."""
    entries = results.entries(SEARCH)
    best = {results.best(same) for _, same in groupby(entries, key=lambda entry: entry.method)}
    columns: list[Column] = [
        ("learning rate", lambda entry: Cell(f"{entry.learning_rate:g}")),
        ("chosen", lambda entry: Cell("✓" if entry in best else "")),
        *_summary_columns(results),
    ]
    return _tabulate("Learning-rate search", f"All that was tried. {_basis(results, SEARCH)}", entries, columns)


def cost_table(results: Results) -> Table:
    """Bytes a client and seconds in the default setting, means over the seeds."""
    parts = list(dict.fromkeys(row.suite for row in results.rows if row.setting == DEFAULT and row.measure == "seconds"))
    parts = sorted(parts, key=lambda part: part == "total")
    columns: list[Column] = [
        _bytes_up(results),
        ("down a client", lambda entry: _plain(results, entry, "down_bytes.mean", in_bytes)),
        *((words(part), lambda entry, part=part: _plain(results, entry, f"seconds.{part}", in_time)) for part in parts),
    ]
    note = (
        "Bytes over the whole run, mean of the clients that took part; pooling data for the centralised reward model "
        "is not counted. Times are computing times, all clients' added up; a method that trains no reward model has none."
    )
    return _tabulate("Cost", note, results.entries(DEFAULT), columns)


def short_table(results: Results, checked: Sequence[Claim]) -> Table:
    """The headline in a few rows and columns, and in its note how many of the claims are met."""
    columns = [*(column for column in _summary_columns(results) if column[0] != "KL"), ("up per client", _bytes_up(results)[1])]
    rows = [_row(entry, columns) for entry in results.entries(DEFAULT) if entry.method in IN_SHORT]
    counts = Counter(claim.verdict for claim in checked)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("met", "missed", "reported", MISSING) if counts[verdict])
    note = f"{_basis(results, DEFAULT)} Of {len(checked)} claims: {said}."
    return Table("In short", note, ["method", *(name for name, _ in columns)], [("", rows)])


def claims_table(results: Results, checked: Sequence[Claim]) -> Table:
    """Every claim with its bar, its number and its verdict, the missed ones like the met ones."""
    tones = {"met": "up", "missed": "down"}
    rows = []
    for claim in checked:
        bar = "none" if claim.bar is None else f"≥ {claim.bar:.{2 * (claim.bar < 10)}f}".replace("-", "−")
        verdict = Cell(claim.verdict, claim.remark, tones.get(claim.verdict, "even"))
        bounds = Cell(bar, "intervals apart" if claim.apart else "")
        rows.append([Cell(claim.text), bounds, _cell(claim.measured, claim.show), verdict])
    best = find_method(best_router(results).method).label
    note = (
        f"Every claim that was to be checked, met or not. In the default setting they are about {best}, the best of MoR's "
        "routers by mean preference, chosen with hindsight. The verdict follows the measured number; where the bar says so, "
        "the two methods' own 95 % intervals must lie apart too. A loss of at most 0.03 reads ≥ −0.03."
    )
    return Table("Claims", note, ["claim", "bar", "measured", "verdict"], [("", rows)])


def _tabulate(title: str, note: str, entries: Sequence[Entry], columns: Sequence[Column]) -> Table:
    by_group = groupby(entries, key=lambda entry: find_method(entry.method).group)
    groups = [(name, [_row(entry, columns) for entry in same]) for name, same in by_group]
    return Table(title, note, ["method", *(name for name, _ in columns)], groups)


def _row(entry: Entry, columns: Sequence[Column]) -> list[Cell]:
    return [Cell(find_method(entry.method).label), *(cell(entry) for _, cell in columns)]


def _summary_columns(results: Results) -> list[Column]:
    return [
        ("mean", _share(results, MEAN)),
        ("worst", _share(results, WORST)),
        ("held-out", _share(results, f"preference.{HELD_OUT}")),
        ("accuracy", _share(results, "accuracy.mean")),
        ("KL", lambda entry: _cell(results.interval(entry, "kl.all"), two_digits, "–")),
    ]


def _share(results: Results, quantity: str) -> Callable[[Entry], Cell]:
    return lambda entry: _cell(results.interval(entry, quantity), three_digits)


def _bytes_up(results: Results) -> Column:
    return "up a client", lambda entry: _plain(results, entry, "up_bytes.mean", in_bytes)


def _mor_minus(results: Results) -> Column:
    """``mor`` less each entry of its setting in mean preference; nothing for itself."""

    def cell(entry: Entry) -> Cell:
        mor = Entry(entry.setting, "mor")
        return Cell("") if entry == mor else _difference(results.difference(mor, entry, MEAN))

    return "MoR minus it", cell


def _minus_default(results: Results) -> Column:
    """Each entry less its own in the default setting."""
    return "minus its default", lambda entry: _difference(results.difference(entry, Entry(DEFAULT, entry.method), MEAN))


def _difference(difference: Estimate | None) -> Cell:
    if difference is None:
        return _cell(None, signed)
    interval = difference.interval(CONFIDENCE)
    return _cell(interval, signed)._replace(tone="up" if interval.low > 0 else "down" if interval.high < 0 else "even")


def _plain(results: Results, entry: Entry, quantity: str, number: Callable[[float], str]) -> Cell:
    """A mean over seeds without an interval; a dash where there is none by nature."""
    estimate = results.estimate(entry, quantity)
    return Cell(number(estimate.value)) if estimate else Cell("–")


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


def markdown_tables(results: Results, weak: Collection[str] = (), names: Collection[str] = ()) -> str:
    """The named tables of ``build_tables`` for the README, in the order given; all if none is named."""
    found = build_tables(results, weak)
    return "\n".join(markdown(found[name]) for name in names or found if name in found)


def console_table(table: Table) -> RichTable:
    """The table for a terminal: an interval stands below its number."""
    styles = {"up": "green", "down": "red", "even": "dim", "": ""}
    shown = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True, pad_edge=False)
    for name in table.header:
        shown.add_column(name)
    for group, rows in table.groups:
        if group:
            shown.add_row(Text(group, style="bold"))
        for row in rows:
            cells = [Text(cell.text, style=styles[cell.tone]) for cell in row]
            for text, cell in zip(cells, row, strict=True):
                text.append(f"\n{cell.detail}" if cell.detail else "", style="dim")
            shown.add_row(*cells)
        shown.add_section()
    return shown


def console_tables(results: Results, weak: Collection[str] = (), names: Collection[str] = ("headline", "claims")) -> Group:
    """The named tables of ``build_tables``, in the order given; claims that nothing was measured for are only counted."""
    found = build_tables(results, weak)
    checked = check_claims(results, weak)
    measured = [claim for claim in checked if claim.measured]
    found["claims"] = claims_table(results, measured)
    left = f"{len(checked) - len(measured)} further claims are not measured yet." if measured != checked else ""
    return Group(*(console_table(found[name]) for name in names if name in found), Text(left, style="dim"))
