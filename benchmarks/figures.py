"""The benchmark's figures, which draw what was measured and leave out the rest, in the style of ``tasks.reports.figures``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from benchmarks.catalogue import DEFAULT, GROUPS, MOR, SEARCH, SINGLE_BEST, ClientChange, find_method
from benchmarks.results import MEAN, WORST, Entry, Measurement, Results, by_group
from mor.evaluation.statistics import Interval
from mor.text import words
from tasks.reports.plotting import BLANK, INK, PALETTE, QUIET, Drawing, blend, panels, styled
from tasks.reports.units import in_bytes

DARK = tuple(PALETTE[i] for i in (0, 2, 1, 7, 5, 6, 8))  # dark enough for a small dot
COLOURS = dict(zip(GROUPS, (*(PALETTE[i] for i in (0, 1, 7, 2, 5)), QUIET, PALETTE[4]), strict=True))
RIM: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.6}
KEY_COLUMNS = 4
STEP = 0.022  # of the axes' width, from a dot to its number and from one number to the next
PANELS = {MEAN: "Mean of the clients", WORST: "Worst client"}
BYTES = {"up_bytes.mean": "up: bytes that leave a client", "down_bytes.mean": "down: bytes that reach a client"}
WEIGHT = "weight:"  # and a client: the measure of a router's weight; its suite is <whose prompts>@<round>
WORDS = {  # title and caption of each figure
    "benchmark": (
        "Every method",
        "Share of greedy answers on held-out questions that the client's annotator prefers, mean over seeds: the mean of "
        "the clients, and the worst client of each seed. Best first in each group; lines are 95 % intervals, dotted is MoR.",
    ),
    "benchmark_bytes": (
        "Quality against bytes on the wire",
        "Bytes over the whole run, mean of the clients that took part, log scale. Dashed lines: nothing was sent, or "
        "nothing was counted; the centralised reward model needs all private data in one place.",
    ),
    "benchmark_seconds": (
        "Quality against time", "Computing time of all parts, the clients' added up. Dashed lines: no training.",
    ),
    "benchmark_settings": (
        "Robustness",
        "The methods that were measured in more than one setting, with 95 % intervals: a dot further left than in the "
        "default has lost. The settings are explained below.",
    ),
    "benchmark_adaptation": (
        "Adaptation",
        "Router weight of the client that changes, on prompts of its own kind, in each round: mean and range over "
        "the seeds. The vertical line is the change; without the online refit the router cannot follow.",
    ),
}  # fmt: skip


class Point(NamedTuple):
    """A method in a scatter, by its number in the key."""

    number: int
    x: float
    y: Interval
    colour: str


def draw_figures(results: Results, changes: Mapping[str, ClientChange]) -> Iterator[Drawing]:
    """Every figure that has data."""
    for name, figure in _figures(results, changes):
        yield Drawing(name, *WORDS[name], figure)


def _figures(results: Results, changes: Mapping[str, ClientChange]) -> Iterator[tuple[str, Figure]]:
    entries = [entry for entry in results.entries(DEFAULT) if entry.method != SINGLE_BEST]  # it is one of the others
    if entries:
        yield "benchmark", preference_bars(results, entries)
    if any(points_of(results, entries, quantity)[0] for quantity in BYTES):
        yield "benchmark_bytes", scatter(results, entries, BYTES)
    if points_of(results, entries, "seconds.total")[0]:
        yield "benchmark_seconds", scatter(results, entries, {"seconds.total": "total computing time"}, minutes=True)
    settings = [setting for setting in results.settings() if setting != SEARCH]
    if len(settings) > 1:
        yield "benchmark_settings", robustness(results, settings)
    if curves := adaptation_curves(results.rows):
        yield "benchmark_adaptation", adaptation(curves, changes)


@styled
def preference_bars(results: Results, entries: Sequence[Entry]) -> Figure:
    """Mean and worst preference of every entry with intervals, the best first within its group."""
    groups = by_group(entries)
    figure, axes = panels(1, 2, 0.7 + 0.21 * (len(entries) + 1.5 * len(groups)), sharey=True)
    ticks: list[tuple[float, str, bool]] = []
    row = 0.0
    for group, same in groups:
        ticks.append((row, group, True))
        for entry in sorted(same, key=lambda entry: -(known.value if (known := results.estimate(entry, MEAN)) else -1.0)):
            row += 1
            ticks.append((row, entry.shown.label, False))
            for axis, quantity in zip(axes[0], PANELS, strict=True):
                if interval := results.interval(entry, quantity):
                    _bar(axis, interval, row, COLOURS[group])
        row += 1.5
    for axis, (quantity, title) in zip(axes[0], PANELS.items(), strict=True):
        if estimate := results.estimate(Entry(DEFAULT, "mor"), quantity):
            axis.axvline(estimate.value, color=COLOURS[MOR], linewidth=0.9, linestyle=":", zorder=0)
        _rows_of_shares(axis, title=title, xlim=(0, 1.1), ylim=(row - 0.8, -0.8))
    places, labels, headings = zip(*ticks, strict=True)
    axes[0, 0].set_yticks(places, labels, color=INK)
    for text, heading in zip(axes[0, 0].get_yticklabels(), headings, strict=True):
        text.set(fontweight="bold" if heading else "normal", color=QUIET if heading else INK, fontsize=8 if heading else 8.5)
    return figure


def _rows_of_shares(axis: Axes, **limits: Any) -> None:
    axis.set(xticks=np.linspace(0, 1, 6), xlabel="share of preferred answers", **limits)
    axis.grid(axis="x")
    axis.tick_params(axis="y", length=0)


def _bar(axis: Axes, interval: Interval, y: float, colour: str) -> None:
    axis.barh(y, interval.value, height=0.66, color=blend(colour, "white", 0.45))
    axis.plot([interval.low, interval.high], [y, y], color=INK, linewidth=1.2, solid_capstyle="butt")
    near: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 7.5, "bbox": BLANK}
    axis.annotate(f"{interval.value:.2f}", (max(interval.high, interval.value), y), (4, -0.5), **near)


def points_of(results: Results, entries: Sequence[Entry], quantity: str, unit: float = 1.0) -> tuple[list[Point], list[Point]]:
    """Mean preference against ``quantity`` in ``unit``s: the entries that have some of it, and those that have none or 0."""
    points = []
    for number, entry in enumerate(entries, 1):
        if quality := results.interval(entry, MEAN):
            known = results.estimate(entry, quantity)
            points.append(Point(number, known.value / unit if known else 0.0, quality, COLOURS[entry.shown.group]))
    return [point for point in points if point.x > 0], [point for point in points if point.x <= 0]


@styled
def scatter(results: Results, entries: Sequence[Entry], quantities: Mapping[str, str], *, minutes: bool = False) -> Figure:
    """Mean preference against each of ``quantities``, a panel each, with numbered points: bytes on a log axis, or minutes."""
    keys = _keys(entries)
    figure, axes = panels(len(quantities), 1, 0.7 + 3.7 * len(quantities) + 0.17 * np.ceil(len(keys) / KEY_COLUMNS))
    for axis, (quantity, title) in zip(axes[:, 0], quantities.items(), strict=True):
        some, none = points_of(results, entries, quantity, 60.0 if minutes else 1.0)
        for point in some:
            axis.plot([point.x] * 2, [point.y.low, point.y.high], color=point.colour, linewidth=1.2, solid_capstyle="butt")
            axis.plot(point.x, point.y.value, "o", color=point.colour, markersize=5.5, **RIM)
        for point in none:
            axis.axhline(point.y.value, color=point.colour, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axis.set(ylim=(0, 1.02), title=title, ylabel="mean preference", xlabel="minutes" if minutes else "")
        _scale_costs(axis, [point.x for point in some] or [1.0], minutes)
        axis.grid()
        _number(axis, some, none)
    figure.legend(handles=keys, loc="outside lower center", ncols=KEY_COLUMNS, fontsize=8, columnspacing=1.2, handletextpad=0.3)
    return figure


def _keys(entries: Sequence[Entry]) -> list[Line2D]:
    """What the numbers stand for, group by group under the group's dot."""
    keys, numbers = [], count(1)
    for group, same in by_group(entries):
        keys.append(Line2D([], [], linestyle="", color=COLOURS[group], marker="o", markersize=5.5, label=f"{group}:"))
        for entry, number in zip(same, numbers, strict=False):
            looks: dict[str, Any] = {"marker": f"${number}$", "markersize": 5 + 2.5 * (number > 9)}
            keys.append(Line2D([], [], linestyle="", color=INK, label=entry.shown.label, **looks))
    return keys


def _scale_costs(axis: Axes, xs: Sequence[float], minutes: bool) -> None:
    """Limits and ticks of a cost axis that holds all ``xs``: minutes from 0, or bytes by their logarithm."""
    if minutes:
        axis.set_xlim(0, 1.3 * max(xs))
        return
    axis.set(xscale="log", xlim=(min(xs) / 2.5, max(xs) * 2.8))
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if max(xs) > 30 * min(xs) else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(lambda value, _: in_bytes(value))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _number(axis: Axes, marked: Sequence[Point], lines: Sequence[Point]) -> None:
    """Each point's number beside its dot, or above its line's left end, in the nearest gap that no number or dot fills."""
    fractions = axis.transScale + axis.transLimits  # of the axes, whatever the layout; limits must be final
    at = {point: tuple(fractions.transform((point.x, point.y.value))) for point in marked}
    at |= {point: (0.0, point.y.value / axis.get_ylim()[1] + 0.02) for point in lines}
    taken = [at[point] for point in marked]
    for point, (x, y) in at.items():
        spot = next(
            spot
            for spot in ((x + side * step * STEP, y) for step in count(1) for side in (1, -1))
            if spot[0] > 0 and not any(abs(spot[0] - a) < 0.9 * STEP and abs(spot[1] - b) < 0.04 for a, b in taken)
        )
        taken.append(spot)
        if abs(spot[0] - x) > 1.5 * STEP:  # not beside its dot: a line leads there
            end = spot[0] - 0.4 * np.sign(spot[0] - x) * STEP
            axis.plot([x, end], [y, y], transform=axis.transAxes, color=point.colour, linewidth=0.6, alpha=0.6, zorder=0)
        axis.text(
            *spot, str(point.number), transform=axis.transAxes, ha="center", va="center", fontsize=7.5, weight="bold",
            color=blend(point.colour, INK, 0.35), in_layout=False,
        )  # fmt: skip


@styled
def robustness(results: Results, settings: Sequence[str]) -> Figure:
    """Mean and worst preference by setting, a dot with its interval for every method that is in more than one."""
    seen = Counter(entry.method for setting in settings for entry in results.entries(setting))
    methods = [method for method, times in seen.items() if times > 1 and method != SINGLE_BEST]
    figure, axes = panels(1, 2, 1.2 + len(settings) * (0.2 + 0.1 * len(methods)), sharey=True)
    looks: dict[str, dict[str, Any]] = {
        m: {"color": DARK[i % len(DARK)], "marker": "oDs^"[i // len(DARK) % 4]} for i, m in enumerate(methods)
    }
    dot: dict[str, Any] = {"markersize": 3.6, "capsize": 2.2, "linewidth": 1}
    offsets = dict(zip(methods, np.linspace(-0.36, 0.36, len(methods)) if len(methods) > 1 else [0.0], strict=True))
    for axis, (quantity, title) in zip(axes[0], PANELS.items(), strict=True):
        for row, setting in enumerate(settings):
            axis.axhspan(row - 0.5, row + 0.5, color="#f6f7f9" if row % 2 == 0 else "white", zorder=-2, linewidth=0)
            for method in methods:
                if interval := results.interval(Entry(setting, method), quantity):
                    reach = np.maximum([[interval.value - interval.low], [interval.high - interval.value]], 0)
                    axis.errorbar(interval.value, row + offsets[method], xerr=reach, **dot, **looks[method])
        _rows_of_shares(axis, title=title, xlim=(-0.02, 1.02), ylim=(len(settings) - 0.5, -0.5))
    axes[0, 0].set_yticks(range(len(settings)), [words(setting) for setting in settings], color=INK)
    keys = [Line2D([], [], linestyle="", markersize=5, label=find_method(m).label, **looks[m]) for m in methods]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(5, max(1, len(keys))))
    return figure


Curves = dict[str, dict[tuple[str, str], dict[str, dict[int, list[float]]]]]


def adaptation_curves(rows: Iterable[Measurement]) -> Curves:
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
def adaptation(curves: Curves, changes: Mapping[str, ClientChange]) -> Figure:
    """A panel a setting: the weight by round of the client that changes, a line a method, shaded from least to largest seed."""
    figure, axes = panels(1, len(curves), 3.1, sharey=True)
    for axis, (setting, weights) in zip(axes[0], curves.items(), strict=True):
        change = changes.get(setting)
        client, category = (change.client, change.client) if change else max(weights, key=lambda who: _moved(weights[who]))
        for method, rounds in sorted(weights.get((client, category), {}).items()):
            numbers = sorted(rounds)
            looks = {"mor": (COLOURS[MOR], "-"), "mor_updated": (PALETTE[1], "-.")}
            colour, line = looks.get(method, (PALETTE[2], (0, (4, 2))))
            label = find_method(method).label
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
