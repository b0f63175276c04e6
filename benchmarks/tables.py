"""The benchmark's claims and tables, for the README, the terminal and the report, from ``benchmarks.results``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from benchmarks.results import (
    AVERAGING_A,
    AVERAGING_B,
    CONFIDENCE,
    DEFAULT,
    MEAN,
    METHODS,
    MIXTURES,
    MOR,
    SEARCH,
    SETTINGS,
    WORST,
    Arm,
    Pair,
    Results,
    described,
)
from mor.config import HELD_OUT
from mor.evaluation.statistics import Estimate, Interval
from mor.text import words
from tasks.reports.units import in_bytes, in_time

MISSING = "not measured"


def _three(x: float) -> str:
    return f"{x:.3f}"


def _plus(x: float) -> str:
    return f"{round(x, 3) + 0.0:+.3f}".replace("-", "−")  # no negative zero


def _two(x: float) -> str:
    return f"{x:.2f}"


def _times(x: float) -> str:
    return f"{x:.3g}×"


# --- claims -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """A claim and what was measured: ``bar`` is the least value that meets it, None where there is none to meet.

    With ``apart`` the two methods' own intervals must not overlap; ``overlap`` says whether they do.
    """

    text: str
    bar: float | None
    measured: Interval | None
    apart: bool = False
    overlap: bool = False
    show: Callable[[float], str] = _plus

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``reported`` (no bar) or ``not measured``."""
        if self.measured is None:
            return MISSING
        if self.bar is None:
            return "reported"
        return "met" if self.measured.value >= self.bar - 1e-9 and not (self.apart and self.overlap) else "missed"

    @property
    def remark(self) -> str:
        """What the verdict does not say: why it was missed, or that it is not certain."""
        if self.measured is None or self.bar is None:
            return ""
        if self.apart and self.overlap:
            return "the intervals overlap"
        reaches = self.measured.low < self.bar <= self.measured.high
        return "the interval reaches across the bar" if reaches else ""


def best_router(results: Results) -> Arm:
    """The best of the MoR routers in the default setting, chosen with hindsight; ``mor`` if there is none."""
    return results.best(arm for arm in results.arms(DEFAULT) if described(arm.method).group == MOR) or Arm(DEFAULT, "mor")


def claims(results: Results, weak: Collection[str] = ()) -> list[Claim]:
    """What the benchmark is to show, of the best router.

    ``weak`` names the weak clients of the setting of that name, which may lose; if it names none, no client may.
    """
    best = best_router(results)
    name = described(best.method).label
    arms = {method: Arm(DEFAULT, method) for method in METHODS}

    def minus(other: str, bar: float | None, quantity: str = MEAN, apart: bool = False) -> Claim:
        text = f"{_SAY[quantity]}: {name} minus {described(other).label}"
        return _claim(text, results.pair(best, arms[other], quantity), bar, apart=apart)

    def ratio(other: str, bar: float) -> Claim:
        text = f"{_SAY[MEAN]}: {name} as a share of {described(other).label}"
        return _claim(text, results.pair(best, arms[other], MEAN), bar, _three)

    a, b = ([m for m, known in METHODS.items() if known.group == group] for group in (AVERAGING_A, AVERAGING_B))
    found = [minus(m, 0.15, apart=True) for m in ("uniform", "min", "median", "static", "random")]
    found += [minus("variance", None), *(minus(m, 0.10, apart=True) for m in b), *(minus(m, None) for m in a)]
    found += [ratio("centralised", 0.95), ratio("oracle", 0.95)]
    found += [minus(m, 0.0, WORST, apart=True) for m in b]
    found += [minus("base", 0.0, f"preference.{HELD_OUT}"), minus("uniform", 0.0, f"preference.{HELD_OUT}", apart=True)]
    for method in a:
        text = f"uplink bytes a client: {described(method).label} over {name}"
        found.append(_claim(text, results.pair(arms[method], best, "up_bytes.mean"), 100, _times))
        text = f"mean preference at those bytes: {name} minus {described(method).label}"
        found.append(_claim(text, results.pair(best, arms[method], MEAN), 0.0))
    return found + _robust(results, weak)


_SAY = {MEAN: "mean preference", WORST: "worst client", f"preference.{HELD_OUT}": "held-out preference"}


def _robust(results: Results, weak: Collection[str]) -> list[Claim]:
    """What MoR loses in a setting against the default, the same router in both."""

    def change(setting: str, quantity: str, say: str, most: float) -> Claim:
        pair = results.pair(Arm(setting, "mor"), Arm(DEFAULT, "mor"), quantity)
        return _claim(f"{setting} minus default: MoR, {say}", pair, -most)

    spared = [client for client in results.clients("weak") if client not in weak]
    return [
        change("hostile", MEAN, "mean preference", 0.03),
        change("inflated", MEAN, "mean preference", 0.01),
        *(change("weak", f"preference.{client}", f"preference of {words(client)}", 0.01) for client in spared),
        *([] if spared else [Claim("weak minus default: MoR, preference of each client that is not weak", -0.01, None)]),
    ]


def _claim(
    text: str, pair: Pair | None, bar: float | None, show: Callable[[float], str] = _plus, *, apart: bool = False
) -> Claim:
    """The difference of ``pair``, or its ratio where no sign is shown; ``apart``: their intervals must not overlap."""
    if pair is None or (show is not _plus and not pair[1].draws.all()):
        return Claim(text, bar, None, apart)
    first, second = pair
    overlap = first.interval(CONFIDENCE).low <= second.interval(CONFIDENCE).high
    measured = first - second if show is _plus else Estimate(first.value / second.value, first.draws / second.draws)
    return Claim(text, bar, measured.interval(CONFIDENCE), apart, overlap, show)


# --- tables -----------------------------------------------------------------------------------------------------------


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


Column = tuple[str, Callable[[Arm], Cell]]


def tables(results: Results, weak: Collection[str] = ()) -> dict[str, Table]:
    """Every table that has rows, by name: claims, headline, settings, setting.<name>, ablation, search, cost."""
    found = {"claims": claims_table(results, claims(results, weak))}
    for setting in results.settings():
        if setting == SEARCH:
            found["search"] = search_table(results)
        else:
            found["headline" if setting == DEFAULT else f"setting.{setting}"] = setting_table(results, setting)
    if set(results.settings()) - {DEFAULT, SEARCH}:
        found["settings"] = settings_table(results)
    if compared := [a for a in results.arms(DEFAULT) if described(a.method).group in (MOR, MIXTURES) or a.method == "oracle"]:
        bytes_up: Column = ("up a client", lambda arm: _plain(results, arm, "up_bytes.mean", in_bytes))
        columns = [*_summary_columns(results), bytes_up, _mor_minus(results)]
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
        return _tabulate("Headline", _basis(results, setting), results.arms(setting), columns)
    note = f"{SETTINGS.get(setting, '')} {_basis(results, setting)}".strip()
    columns.append(_minus_default(results))
    return _tabulate(f"Setting: {words(setting)}", note, results.arms(setting), columns)


def settings_table(results: Results) -> Table:
    """Every method in every setting but the default, in short: a group a setting."""
    columns: list[Column] = [
        ("seeds", lambda arm: Cell(f"{len(results.seeds(arm, MEAN))}")),
        *_summary_columns(results),
        _mor_minus(results),
        _minus_default(results),
    ]
    groups = [
        (f"{words(setting)}: {SETTINGS.get(setting, '')}", [_row(arm, columns) for arm in results.arms(setting)])
        for setting in results.settings()
        if setting not in (DEFAULT, SEARCH)
    ]
    note = "Share of preferred answers over so many seeds; 95 % paired two-level bootstrap intervals."
    return Table("Other settings", note, ["method", *(name for name, _ in columns)], groups)


def search_table(results: Results) -> Table:
    """All that the search measured; the rate of the largest mean preference is marked."""
    arms = results.arms(SEARCH)
    best = {results.best(same) for _, same in groupby(arms, key=lambda arm: arm.method)}
    columns: list[Column] = [
        ("learning rate", lambda arm: Cell(f"{arm.learning_rate:g}")),
        ("chosen", lambda arm: Cell("✓" if arm in best else "")),
        *_summary_columns(results),
    ]
    return _tabulate("Learning-rate search", f"All that was tried. {_basis(results, SEARCH)}", arms, columns)


def cost_table(results: Results) -> Table:
    """Bytes a client and seconds in the default setting, means over the seeds."""
    parts = list(dict.fromkeys(row.suite for row in results.rows if row.setting == DEFAULT and row.measure == "seconds"))
    parts = sorted(parts, key=lambda part: part == "total")
    columns: list[Column] = [
        ("up a client", lambda arm: _plain(results, arm, "up_bytes.mean", in_bytes)),
        ("down a client", lambda arm: _plain(results, arm, "down_bytes.mean", in_bytes)),
        *((words(part), lambda arm, part=part: _plain(results, arm, f"seconds.{part}", in_time)) for part in parts),
    ]
    note = (
        "Bytes over the whole run, mean of the clients that took part; pooling data for the centralised reward model "
        "is not counted. Times are computing times, all clients' added up; a method that trains no reward model has none."
    )
    return _tabulate("Cost", note, results.arms(DEFAULT), columns)


def claims_table(results: Results, checked: Sequence[Claim]) -> Table:
    """Every claim with its bar, its number and its verdict, the missed ones like the met ones."""
    tones = {"met": "up", "missed": "down"}
    rows = [
        [
            Cell(claim.text),
            Cell(_bar(claim.bar), "intervals apart" if claim.apart else ""),
            _cell(claim.measured, claim.show),
            Cell(claim.verdict, claim.remark, tones.get(claim.verdict, "even")),
        ]
        for claim in checked
    ]
    best = described(best_router(results).method).label
    note = (
        f"Every claim that was to be checked, met or not. In the default setting they are about {best}, the best of MoR's "
        "routers by mean preference, chosen with hindsight. The verdict follows the measured number; where the bar says so, "
        "the two methods' own 95 % intervals must lie apart too. A loss of at most 0.03 reads ≥ −0.03."
    )
    return Table("Claims", note, ["claim", "bar", "measured", "verdict"], [("", rows)])


def _bar(bar: float | None) -> str:
    return "none" if bar is None else f"≥ {bar:.{2 * (bar < 10)}f}".replace("-", "−")


def _tabulate(title: str, note: str, arms: Sequence[Arm], columns: Sequence[Column]) -> Table:
    groups = groupby(arms, key=lambda arm: described(arm.method).group)
    return Table(
        title,
        note,
        ["method", *(name for name, _ in columns)],
        [(name, [_row(arm, columns) for arm in same]) for name, same in groups],
    )


def _row(arm: Arm, columns: Sequence[Column]) -> list[Cell]:
    return [Cell(described(arm.method).label), *(cell(arm) for _, cell in columns)]


def _summary_columns(results: Results) -> list[Column]:
    return [
        ("mean", _share(results, MEAN)),
        ("worst", _share(results, WORST)),
        ("held-out", _share(results, f"preference.{HELD_OUT}")),
        ("accuracy", _share(results, "accuracy.mean")),
        ("KL", lambda arm: _cell(results.interval(arm, "kl.all"), _two, "–")),
    ]


def _share(results: Results, quantity: str) -> Callable[[Arm], Cell]:
    return lambda arm: _cell(results.interval(arm, quantity), _three)


def _mor_minus(results: Results) -> Column:
    """``mor`` less each arm of its setting in mean preference; nothing for itself."""

    def cell(arm: Arm) -> Cell:
        mor = Arm(arm.setting, "mor")
        return Cell("") if arm == mor else _signed(results.difference(mor, arm, MEAN))

    return "MoR minus it", cell


def _minus_default(results: Results) -> Column:
    """Each arm less its own in the default setting."""
    return "minus its default", lambda arm: _signed(results.difference(arm, Arm(DEFAULT, arm.method), MEAN))


def _signed(difference: Estimate | None) -> Cell:
    if difference is None:
        return _cell(None, _plus)
    interval = difference.interval(CONFIDENCE)
    return _cell(interval, _plus)._replace(tone="up" if interval.low > 0 else "down" if interval.high < 0 else "even")


def _plain(results: Results, arm: Arm, quantity: str, number: Callable[[float], str]) -> Cell:
    """A mean over seeds without an interval; a dash where there is none by nature."""
    estimate = results.estimate(arm, quantity)
    return Cell(number(estimate.value)) if estimate else Cell("–")


def _cell(interval: Interval | None, number: Callable[[float], str], missing: str = MISSING) -> Cell:
    if interval is None:
        return Cell(missing, tone="even")
    between = " to " if number is _plus else "–"
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
    """The named tables of ``tables`` for the README, in the order given; all if none is named."""
    found = tables(results, weak)
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
    """The named tables of ``tables``, in the order given; claims that nothing was measured for are only counted."""
    found = tables(results, weak)
    checked = claims(results, weak)
    measured = [claim for claim in checked if claim.measured]
    found["claims"] = claims_table(results, measured)
    left = Text(
        f"{len(checked) - len(measured)} further claims are not measured yet." if measured != checked else "", style="dim"
    )
    return Group(*(console_table(found[name]) for name in names if name in found), left)
