"""The benchmark's report: figures as PNG, and one HTML page with every figure and table inside it.

``figures`` draws what was measured and leaves out the rest; ``write_comparison`` writes the files. The look, and the style
sheet, are those of ``tasks.reports.figures`` and of the run's own report.
"""

from __future__ import annotations

from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from benchmarks.results import (
    AVERAGING_A,
    AVERAGING_B,
    CONFIDENCE,
    DEFAULT,
    MEAN,
    MIXTURES,
    MOR,
    OTHERS,
    REFERENCES,
    SEARCH,
    SETTINGS,
    SINGLE_BEST,
    SINGLES,
    WORST,
    Arm,
    Results,
    Row,
    described,
    place,
)
from benchmarks.tables import Claim, claims, tables
from mor.evaluation.statistics import Interval
from mor.files import write_whole
from tasks.reports.figures import BLANK, INK, PALETTE, QUIET, in_bytes, mix, panels, styled, words
from tasks.reports.page import Drawing

DPI = 200  # figures are 8 inches wide: twice the 800 pixels at which they are read
DARK = tuple(PALETTE[i] for i in (0, 2, 1, 7, 5, 6, 8))  # dark enough for a small dot
COLOURS = {
    MOR: PALETTE[0], MIXTURES: PALETTE[1], SINGLES: PALETTE[7], AVERAGING_A: PALETTE[2], AVERAGING_B: PALETTE[5],
    REFERENCES: QUIET, OTHERS: PALETTE[4],
}  # fmt: skip
SHARE = "share of preferred answers"
RIM: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
WEIGHT = "weight:"  # and a client: the measure of a router's weight; its suite is <whose prompts>@<round>


@dataclass(frozen=True)
class Change:
    """What happens in a setting of the adaptation figure: ``client`` is another from ``round`` on, seen on its ``category``."""

    client: str
    category: str
    round: int


@dataclass(frozen=True)
class Point:
    """A method in a scatter."""

    x: float
    y: Interval
    label: str
    colour: str


def write_comparison(
    rows: Iterable[Row], folder: Path, html: Path, *, weak: Collection[str] = (), changes: Mapping[str, Change] | None = None
) -> Results:
    """Write the figures as PNG into ``folder`` and the page to ``html``; returns the results, for tables on the terminal.

    ``weak`` names the weak clients of the setting of that name; ``changes`` says, by setting, what the adaptation figure
    shows: without it, the weight that moves most.
    """
    results = Results(rows)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = []
    for drawing in figures(results, changes or {}):
        path = folder / f"{drawing.name}.png"
        drawing.figure.savefig(path, dpi=DPI, metadata={"Software": None})  # the same figure gives the same bytes
        drawings.append((drawing, path.read_bytes()))
    write_whole(html, render(results, drawings, weak))
    return results


def render(results: Results, drawings: Sequence[tuple[Drawing, bytes]], weak: Collection[str] = ()) -> str:
    """The page; ``drawings`` come with their PNGs."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters: dict[str, Callable[..., Any]] = {
        "inline": lambda png: Markup("data:image/png;base64,") + b64encode(png).decode(),
        "words": words,
    }
    environment.filters |= filters
    style, _, _ = loader.get_source(environment, "report.html.j2")[0].partition("<style>")[2].partition("</style>")
    asked = [arm for setting in results.settings() for arm in results.arms(setting)]
    ordered = map(described, sorted({method for _, method, _ in asked} | {row.method for row in results.rows}, key=place))
    present = {row.setting for row in results.rows}
    return environment.get_template("comparison.html.j2").render(
        style=Markup(style),
        tiles=tiles(results, claims(results, weak)),
        tables=tables(results, weak),
        drawings={drawing.name: (drawing, png) for drawing, png in drawings},
        methods=[(group, list(same)) for group, same in groupby(ordered, key=lambda method: method.group)],
        settings={name: SETTINGS.get(name, "") for name in dict.fromkeys([*SETTINGS, *sorted(present)]) if name in present},
        clients=results.clients(DEFAULT),
    )


def tiles(results: Results, checked: Sequence[Claim]) -> list[tuple[str, str]]:
    """The shortest summary: numbers with their meaning."""
    verdicts = [claim.verdict for claim in checked]
    decided = verdicts.count("met") + verdicts.count("missed")
    missing = verdicts.count("not measured")
    met = "measured claims are met" + (f"; {missing} are not measured" if missing else "")
    found = [(f"{verdicts.count('met')} of {decided}", met)]
    for quantity, say in ((MEAN, "mean preference"), (WORST, "worst client's preference")):
        pair = results.pair(Arm(DEFAULT, "base"), Arm(DEFAULT, "mor"), quantity)
        if pair:
            found.append((f"{pair[0].value:.2f} → {pair[1].value:.2f}", f"{say}, base → MoR"))
    if sent := results.estimate(Arm(DEFAULT, "mor"), "up_bytes.mean"):
        found.append((in_bytes(sent.value), "leave a client in MoR's whole run"))
    return found


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(results: Results, changes: Mapping[str, Change]) -> Iterator[Drawing]:
    """Every figure that has data."""
    arms = [arm for arm in results.arms(DEFAULT) if arm.method != SINGLE_BEST]  # it is one of the others
    if arms:
        caption = (
            "Share of greedy answers on held-out questions that the client's annotator prefers, mean over seeds: the mean of "
            "the clients, and the worst client of each seed. Best first in each group; lines are 95 % intervals, dotted is MoR."
        )
        yield Drawing("benchmark", "Every method", caption, headline(results, arms))
    ways = {"up_bytes.mean": "up: bytes that leave a client", "down_bytes.mean": "down: bytes that reach a client"}
    if any(points(results, arms, quantity)[0] for quantity in ways):
        caption = (
            "Bytes over the whole run, mean of the clients that took part, log scale. Dashed lines: nothing was sent, or "
            "nothing was counted; the centralised reward model needs all private data in one place."
        )
        yield Drawing("benchmark_bytes", "Quality against bytes on the wire", caption, scatter(results, arms, ways))
    if points(results, arms, "seconds.total")[0]:
        caption = "Computing time of all parts, the clients' added up. Dashed lines: no training."
        drawn = scatter(results, arms, {"seconds.total": "total computing time"}, minutes=True)
        yield Drawing("benchmark_seconds", "Quality against time", caption, drawn)
    settings = [setting for setting in results.settings() if setting != SEARCH]
    if len(settings) > 1:
        caption = (
            "The methods that were measured in more than one setting, with 95 % intervals: a dot further left than in the "
            "default has lost. The settings are explained below."
        )
        yield Drawing("benchmark_settings", "Robustness", caption, robustness(results, settings))
    if curves := adaptation_curves(results.rows):
        caption = (
            "Router weight of the client that changes, on prompts of its own kind, in each round: mean and range over "
            "the seeds. The vertical line is the change; without the online refit the router cannot follow."
        )
        yield Drawing("benchmark_adaptation", "Adaptation", caption, adaptation(curves, changes))


@styled
def headline(results: Results, arms: Sequence[Arm]) -> Figure:
    """Mean and worst preference of every arm with intervals, the best first within its group."""
    groups = {group: list(same) for group, same in groupby(arms, key=lambda arm: described(arm.method).group)}
    figure, axes = panels(1, 2, 0.7 + 0.21 * (len(arms) + 1.5 * len(groups)), sharey=True)
    ticks: list[tuple[float, str, bool]] = []
    row = 0.0
    for group, same in groups.items():
        ticks.append((row, group, True))
        for arm in sorted(same, key=lambda arm: -_value(results, arm, MEAN)):
            row += 1
            ticks.append((row, described(arm.method).label, False))
            for axis, quantity in zip(axes[0], (MEAN, WORST), strict=True):
                if estimate := results.estimate(arm, quantity):
                    _bar(axis, estimate.interval(CONFIDENCE), row, COLOURS[group])
        row += 1.5
    for axis, quantity, title in zip(axes[0], (MEAN, WORST), ("Mean of the clients", "Worst client"), strict=True):
        if estimate := results.estimate(Arm(DEFAULT, "mor"), quantity):
            axis.axvline(estimate.value, color=COLOURS[MOR], linewidth=0.9, linestyle=":", zorder=0)
        axis.set(title=title, xlim=(0, 1.1), xticks=np.linspace(0, 1, 6), ylim=(row - 0.8, -0.8), xlabel=SHARE)
        axis.grid(axis="x")
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks([y for y, _, _ in ticks], [label for _, label, _ in ticks], color=INK)
    for text, (_, _, heading) in zip(axes[0, 0].get_yticklabels(), ticks, strict=True):
        text.set(fontweight="bold" if heading else "normal", color=QUIET if heading else INK, fontsize=8 if heading else 8.5)
    return figure


def _value(results: Results, arm: Arm, quantity: str) -> float:
    estimate = results.estimate(arm, quantity)
    return estimate.value if estimate else -1.0


def _bar(axis: Axes, interval: Interval, y: float, colour: str) -> None:
    axis.barh(y, interval.value, height=0.66, color=mix(colour, "white", 0.45))
    axis.plot([interval.low, interval.high], [y, y], color=INK, linewidth=1.2, solid_capstyle="butt")
    near: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7.5, "bbox": BLANK}
    axis.annotate(f"{interval.value:.2f}", (max(interval.high, interval.value), y), (4, -0.5), **near)


def points(results: Results, arms: Sequence[Arm], quantity: str, unit: float = 1.0) -> tuple[list[Point], list[Point]]:
    """Mean preference against ``quantity`` in ``unit``s: the arms that have some of it, and those that have none or 0."""
    some: list[Point] = []
    none: list[Point] = []
    for arm in arms:
        if quality := results.interval(arm, MEAN):
            known = results.estimate(arm, quantity)
            x = known.value / unit if known else 0.0
            label, group, _ = described(arm.method)
            (some if x > 0 else none).append(Point(x, quality, label, COLOURS[group]))
    return some, none


@styled
def scatter(results: Results, arms: Sequence[Arm], quantities: Mapping[str, str], *, minutes: bool = False) -> Figure:
    """Mean preference against each of ``quantities``, a panel each, every point labelled: bytes on a log axis, or minutes."""
    figure, axes = panels(len(quantities), 1, 0.5 + 3.7 * len(quantities))
    drawn = []
    for axis, (quantity, title) in zip(axes[:, 0], quantities.items(), strict=True):
        some, none = points(results, arms, quantity, 60.0 if minutes else 1.0)
        for point in some:
            axis.plot([point.x] * 2, [point.y.low, point.y.high], color=point.colour, linewidth=1.2, solid_capstyle="butt")
            axis.plot(point.x, point.y.value, "o", color=point.colour, markersize=5.5, **RIM)
        for point in none:
            axis.axhline(point.y.value, color=point.colour, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        xs = [point.x for point in some] or [1.0]
        axis.set(ylim=(0, 1.02), title=title, ylabel="mean preference", xlabel="minutes" if minutes else "")
        if minutes:
            axis.set_xlim(0, 1.3 * max(xs))
        else:
            axis.set(xscale="log", xlim=(min(xs) / 2.5, max(xs) * 2.8))
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if max(xs) > 30 * min(xs) else (1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(lambda value, _: in_bytes(value))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid()
        drawn.append((axis, some, [replace(point, x=axis.get_xlim()[0]) for point in none]))
    found = dict.fromkeys(described(arm.method).group for arm in arms)
    keys = [Line2D([], [], marker="o", linestyle="", color=COLOURS[group], label=group) for group in found]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(3, len(keys)))
    figure.draw_without_rendering()  # fixes the layout, in which the labels find their places
    for axis, some, none in drawn:
        place_labels(axis, some, none)
    return figure


def place_labels(axis: Axes, marked: Sequence[Point], lines: Sequence[Point] = ()) -> None:
    """Label ``marked`` points near them and ``lines`` at the left end, so that no label covers another label or a point.

    Greedy: the most crowded point first takes the nearest free place around it, one nearest to itself if there is any; a thin
    line leads to a place further off, or nearer to another point.
    Positions are final, so the figure must keep its size and limits from here on.
    """
    pixel = axis.figure.dpi / 72  # pixels in a typographic point
    inside = axis.get_window_extent().padded(-2)
    at = {point: axis.transData.transform((point.x, point.y.value)) for point in (*lines, *marked)}
    taken = []
    for point in marked:  # its dot, and the line of its interval
        low, high = (axis.transData.transform((point.x, y)) for y in (point.y.low, point.y.high))
        taken.append(Bbox.union([Bbox([at[point] - 4 * pixel, at[point] + 4 * pixel]), Bbox([low - 1, high + 1])]))
    taken += [Bbox([(inside.x0, at[line][1] - 1), (inside.x1, at[line][1] + 1)]) for line in lines]

    def crowd(point: Point) -> int:
        return sum(np.hypot(*((at[other] - at[point]) / (6, 1))) < 10 * pixel for other in marked)

    def edge(point: Point, box: Bbox) -> Any:  # where the box is nearest to the point
        return np.clip(at[point], box.min, box.max)

    def away(point: Point, box: Bbox) -> float:
        return float(np.hypot(*(edge(point, box) - at[point])))

    def astray(point: Point, box: Bbox) -> bool:
        return any(away(other, box) < away(point, box) for other in marked if other != point)

    for point in (*lines, *sorted(marked, key=lambda point: (-crowd(point), point.y.value))):
        text = axis.annotate(
            point.label, (point.x, point.y.value), (0, 0), textcoords="offset points", ha="center", va="center", fontsize=8,
            color=mix(point.colour, INK, 0.35), weight="bold" if point.colour == COLOURS[MOR] else "normal", in_layout=False,
        )  # fmt: skip
        half = np.array(text.get_window_extent().size) / 2
        room = [
            (centre, box)
            for centre in at[point] + _offsets(half, pixel, sideways=point in lines)
            if inside.containsx((box := Bbox([centre - half, centre + half])).x0) and inside.containsx(box.x1)
            if inside.containsy(box.y0) and inside.containsy(box.y1) and not box.count_overlaps(taken)
        ]
        centre, box = min(  # of equals the first, which is the nearest
            room,
            key=lambda place, point=point: point not in lines and astray(point, place[1]),  # type: ignore[misc]
            default=(at[point] + (0, half[1] + 5 * pixel), Bbox([at[point], at[point]])),
        )
        text.set_position(tuple((centre - at[point]) / pixel))
        taken.append(box.padded(pixel))
        if point not in lines and (away(point, box) > 9 * pixel or astray(point, box)):
            end = edge(point, box)
            ends = axis.transData.inverted().transform([at[point], end])
            axis.plot(*ends.T, color=point.colour, linewidth=0.6, alpha=0.7, zorder=1, scalex=False, scaley=False)
            taken += [Bbox([p - 1, p + 1]) for p in np.linspace(at[point], end, 8)[1:-1]]


def _offsets(half: Any, pixel: float, *, sideways: bool) -> Any:
    """Centres to try for a label of ``half`` its size around a point, the nearest first, in pixels: (tries, 2)."""
    if sideways:  # along a line, above it, then below
        return np.array([(half[0] * step + 6, side * (half[1] + 2 * pixel)) for step in range(1, 9) for side in (1, -1)])
    rings = [5, 8, 12, 17, 23, 30, 38, 47, 57, 68, 80, 95, 110, 130, 150]
    turns = np.deg2rad([0, 180, 25, -25, 155, -155, 50, -50, 130, -130, 90, -90])
    return np.array([(half + ring * pixel) * (np.cos(turn), np.sin(turn)) for ring in rings for turn in turns])


@styled
def robustness(results: Results, settings: Sequence[str]) -> Figure:
    """Mean and worst preference by setting, a dot with its interval for every method that is in more than one."""
    by_method: dict[str, list[Arm]] = defaultdict(list)
    for setting in settings:
        for arm in results.arms(setting):
            by_method[arm.method].append(arm)
    methods = [m for m, arms in by_method.items() if len(arms) > 1 and m != SINGLE_BEST and results.clients(arms[0].setting)]
    figure, axes = panels(1, 2, 1.2 + len(settings) * (0.2 + 0.1 * len(methods)), sharey=True)
    looks: dict[str, dict[str, Any]] = {
        m: {"color": DARK[i % len(DARK)], "marker": "oDs^"[i // len(DARK) % 4]} for i, m in enumerate(methods)
    }
    offsets = dict(zip(methods, np.linspace(-0.36, 0.36, len(methods)) if len(methods) > 1 else [0.0], strict=True))
    for axis, quantity, title in zip(axes[0], (MEAN, WORST), ("Mean of the clients", "Worst client"), strict=True):
        for row, setting in enumerate(settings):
            axis.axhspan(row - 0.5, row + 0.5, color="#f6f7f9" if row % 2 == 0 else "white", zorder=-2, linewidth=0)
            for method in methods:
                if interval := results.interval(Arm(setting, method), quantity):
                    arms = [[interval.value - interval.low], [interval.high - interval.value]]
                    y = row + offsets[method]
                    axis.errorbar(
                        interval.value, y, xerr=np.maximum(arms, 0), markersize=3.6, capsize=2.2, linewidth=1, **looks[method]
                    )
        axis.set(title=title, xlim=(-0.02, 1.02), xticks=np.linspace(0, 1, 6), ylim=(len(settings) - 0.5, -0.5), xlabel=SHARE)
        axis.grid(axis="x")
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(settings)), [words(setting) for setting in settings], color=INK)
    keys = [Line2D([], [], linestyle="", markersize=5, label=described(m).label, **looks[m]) for m in methods]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(5, max(1, len(keys))))
    return figure


Curves = dict[str, dict[tuple[str, str], dict[str, dict[int, list[float]]]]]


def adaptation_curves(rows: Iterable[Row]) -> Curves:
    """Router weights by setting, (client, category), method and round: one number a seed."""
    curves: Curves = {}
    for row in rows:
        if row.measure.startswith(WEIGHT):
            category, _, number = row.suite.rpartition("@")
            who = (row.measure.removeprefix(WEIGHT), category)
            rounds = curves.setdefault(row.setting, {}).setdefault(who, {}).setdefault(row.method, {})
            rounds.setdefault(int(number), []).append(row.value)
    return curves


@styled
def adaptation(curves: Curves, changes: Mapping[str, Change]) -> Figure:
    """A panel a setting: the weight by round of the client that changes, a line a method, shaded from least to largest seed."""
    figure, axes = panels(1, len(curves), 3.1, sharey=True)
    for axis, (setting, weights) in zip(axes[0], curves.items(), strict=True):
        change = changes.get(setting)
        client, category = (change.client, change.category) if change else max(weights, key=lambda who: _moved(weights[who]))
        for method, rounds in sorted(weights.get((client, category), {}).items()):
            numbers = sorted(rounds)
            looks = {"mor": (COLOURS[MOR], "-"), "mor_updated": (PALETTE[1], "-.")}
            colour, line = looks.get(method, (PALETTE[2], (0, (4, 2))))
            label = described(method).label
            low, mean, high = ([reduce(rounds[n]) for n in numbers] for reduce in (min, np.mean, max))
            axis.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.plot(numbers, mean, color=colour, linestyle=line, marker="o", markersize=3.5, label=label)
        if change:
            axis.axvline(change.round - 0.5, color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
        axis.set(title=f"{words(setting)}: {words(client)}", xlabel="in round", ylim=(-0.02, 1.03))
        axis.set_title(f"on {words(category)} prompts", loc="right", fontsize=8.5, fontweight="normal", color=QUIET)
        axis.xaxis.set_major_locator(MaxNLocator(9, integer=True))
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("router weight")
    keys = {label: key for axis in axes[0] for key, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=3)
    return figure


def _moved(methods: Mapping[str, Mapping[int, Sequence[float]]]) -> float:
    """How far the mean weight moves between any two rounds, for the method for which it moves most."""
    return max(float(np.ptp([np.mean(seeds) for seeds in rounds.values()])) for rounds in methods.values())
