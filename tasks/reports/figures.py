"""The report's figures: numbers in, a matplotlib ``Figure`` out; saving is the caller's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mor.config import SUMMARIES
from mor.text import words
from tasks.reports.plotting import (
    BLANK,
    FAINT,
    INK,
    NO_CLIENT,
    QUIET,
    SUITE_TITLES,
    TITLES,
    blend,
    client_colours,
    panels,
    styled,
    suite_order,
)
from tasks.reports.units import in_bytes, in_time

STAGES = ("zoo", "fedvqa", "validate", "reward", "router", "align", "evaluate", "report")
SMOOTHING = 9  # GRPO steps in the running mean of a learning curve


@dataclass(frozen=True)
class RouterWeight:
    """A row of ``reports/router_weights.csv``: mean weight of ``client`` on the prompts of ``category`` after ``round``."""

    round: int
    category: str
    client: str
    weight: float


@styled
def score_bars(models: Mapping[str, Any], clients: Sequence[str]) -> Figure:
    """Base against aligned for every suite, with intervals; ``models`` is ``metrics["models"]``."""
    figure, axes = panels(2, 1, 5.2, sharex=True)
    colours = client_colours(clients)
    suites = suite_order(models["base"]["preference"], clients)
    gaps = [(suite not in colours) + (suite not in {*colours, *SUMMARIES}) for suite in suites]  # before what is no client
    places = np.arange(len(suites)) + 0.35 * np.array(gaps)
    for axis, (measure, title) in zip(axes[:, 0], TITLES.items(), strict=True):
        for place, suite in zip(places, suites, strict=True):
            colour = colours.get(suite, NO_CLIENT)
            _bar(axis, place - 0.2, models["base"][measure][suite], blend(colour, "white", 0.68))
            _bar(axis, place + 0.2, models["aligned"][measure][suite], to_rgb(colour))
        axis.set(ylim=(0, 1.09), ylabel="share of answers", title=title, yticks=np.linspace(0, 1, 6))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(axis="y")
        axis.tick_params(axis="x", length=0)
    labels = {**SUITE_TITLES, "mean": "mean\nof clients", "worst": "worst\nclient"}
    axes[-1, 0].set_xticks(places, [labels.get(suite, suite.replace("_", "\n")) for suite in suites], color=INK)
    keys = [Patch(color="#d3d5d8", label="base"), Patch(color=NO_CLIENT, label="aligned")]
    axes[0, 0].legend(handles=keys, loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, borderaxespad=0.2)
    return figure


def _bar(axis: Axes, x: float, interval: Mapping[str, float], fill: tuple[float, float, float]) -> None:
    value, low, high = interval["value"], interval["low"], interval["high"]
    axis.bar(x, value, width=0.36, color=fill)
    halo = [Stroke(linewidth=2.4, foreground="white"), Normal()]  # visible on dark bars too
    axis.plot([x, x], [low, high], color=INK, linewidth=1, solid_capstyle="butt", path_effects=halo)
    axis.annotate(f"{100 * value:.0f}", (x, high), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8)


@styled
def router_weights(weights: Sequence[RouterWeight], clients: Sequence[str], most: int = 4) -> Figure:
    """Mean router weight by category, a panel a round; beyond ``most`` rounds the first and the last ones."""
    rounds = sorted({weight.round for weight in weights})
    rounds = rounds if len(rounds) <= most else [*rounds[: most // 2], *rounds[-(most - most // 2) :]]
    categories = list(dict.fromkeys(weight.category for weight in weights))
    by_cell = {(w.round, w.category, w.client): w.weight for w in weights}
    figure, axes = panels(1, len(rounds), 1.1 + 0.27 * len(categories), sharey=True)
    for axis, number in zip(axes[0], rounds, strict=True):
        values = np.array([[by_cell.get((number, category, client), np.nan) for client in clients] for category in categories])
        _heatmap(axis, values, "Purples", (0, 1))
        axis.set_title(f"round {number}" if number else "before GRPO", loc="center")
        _name_clients(axis, clients)
    axes[0, 0].set_yticks(range(len(categories)), [words(category) for category in categories], color=INK)
    return figure


@styled
def pair_accuracy(reward_models: Mapping[str, Any], clients: Sequence[str]) -> Figure:
    """Every client's reward model (rows) on every client's held-out pairs (columns), a panel a kind of pair.

    ``reward_models`` is ``metrics["reward_models"]``. Colours centre on 0.5, what a coin would score.
    """
    kinds = list(dict.fromkeys(k for judge in reward_models.values() for d in judge["pair_accuracy"].values() for k in d))
    figure, axes = panels(1, max(1, len(kinds)), 1.3 + 0.38 * len(clients), sharey=True)
    for axis, kind in zip(axes[0], kinds, strict=False):
        cells = [[_dig(reward_models, judge, "pair_accuracy", domain, kind) for domain in clients] for judge in clients]
        image = _heatmap(axis, np.array(cells, dtype=np.float64), "PuOr", (0, 1))
        axis.set_title(words(kind), loc="center")
        _name_clients(axis, clients)
    axes[0, 0].set_yticks(range(len(clients)), [words(client) for client in clients], color=INK)
    axes[0, 0].set_ylabel("reward model of")
    figure.supxlabel("held-out pairs of", fontsize=9, color=QUIET)
    if kinds:
        bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=14, pad=0.02, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0 always wrong", "0.5 a coin", "1 always right"], fontsize=8)
        bar.outline.set_visible(False)
    return figure


def _dig(nested: Any, *keys: str) -> float:
    for key in keys:
        nested = nested.get(key, {})
    return float(nested) if isinstance(nested, int | float) else np.nan


def _name_clients(axis: Axes, clients: Sequence[str]) -> None:
    axis.set_xticks(range(len(clients)), [words(client) for client in clients], rotation=40, ha="right", rotation_mode="anchor")
    axis.tick_params(axis="x", labelcolor=INK)


def _heatmap(axis: Axes, values: NDArray[np.float64], colours: str, limits: tuple[float, float]) -> Any:
    """Cells with their numbers; a cell that was not measured stays empty."""
    image = axis.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(np.array(value)))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    axis.set_xticks(np.arange(values.shape[1] + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(values.shape[0] + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=1.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    return image


@styled
def learning_curves(rounds: Sequence[Mapping[str, float]], clients: Sequence[str]) -> Figure:
    """The rows of ``reports/rounds.csv`` against the GRPO step; faint lines where a round begins."""
    figure, axes = panels(2, 3, 4.4, sharex=True)
    column = {key: np.array([row.get(key, np.nan) for row in rounds], dtype=np.float64) for row in rounds[:1] for key in row}
    whole = {"reward": "mixed reward", "kl": "KL to base (nats)", "entropy": "entropy (nats a token)"}
    whole |= {"completion_length": "answer length (tokens)"}
    for axis, (key, title) in zip((*axes[0], axes[1, 2]), whole.items(), strict=True):
        _curve(axis, column.get(key), INK)
        axis.set_title(title)
    for axis, prefix, title in ((axes[1, 0], "score", "clients' scores"), (axes[1, 1], "weight", "router weights")):
        for client, colour in client_colours(clients).items():
            _curve(axis, column.get(f"{prefix}_{client}"), colour, words(client))
        axis.set_title(title)
    axes[1, 1].set_ylim(0, 1)
    _mark_rounds(axes, column.get("round", np.zeros(len(rounds))))
    handles, labels = axes[1, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return figure


def _mark_rounds(axes: NDArray[Any], rounds: NDArray[np.float64]) -> None:
    """Steps along every panel, and a line where a round begins."""
    for axis in axes.flat:
        for begin in np.flatnonzero(np.diff(rounds)):
            axis.axvline(begin + 1.5, color=FAINT, linewidth=1, zorder=0)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.grid(axis="y")
    for axis in axes[-1]:
        axis.set_xlabel("GRPO step")


def _curve(axis: Axes, values: NDArray[np.float64] | None, colour: str, label: str | None = None) -> None:
    """The raw curve, faint, below its running mean over ``SMOOTHING`` steps; a column that is not there draws nothing."""
    if values is None or np.isnan(values).all():
        return
    steps = np.flatnonzero(~np.isnan(values))
    values = values[steps]
    window = np.ones(min(SMOOTHING, len(values)))
    counts = np.convolve(np.ones_like(values), window, "same")  # fewer neighbours at the ends
    axis.plot(steps + 1, values, color=colour, alpha=0.22, linewidth=0.9)
    axis.plot(steps + 1, np.convolve(values, window, "same") / counts, color=colour, label=label)


@styled
def wire_bytes(
    sent: Mapping[str, Mapping[str, float]], clients: Sequence[str], references: Mapping[str, float] | None = None
) -> Figure:
    """Bytes up and down each client over the run, log scale; ``references`` are bytes per client in one direction."""
    references = references or {}
    figure, axes = panels(1, 1, 1.2 + 0.62 * max(1, len(sent)))
    axis, colours = axes[0, 0], client_colours(clients)
    for row, (client, way) in enumerate(sent.items()):
        colour = colours.get(client, QUIET)
        _byte_bar(axis, row - 0.2, "up", float(way["up_bytes"]), to_rgb(colour))
        _byte_bar(axis, row + 0.2, "down", float(way["down_bytes"]), blend(colour, "white", 0.55))
    for name, number in references.items():
        axis.axvline(number, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        label = f"{name}\n{in_bytes(number)}"
        axis.annotate(label, (number, 1), (0, 3), ("data", "axes fraction"), "offset points", ha="center", fontsize=8)
    numbers = [*(float(number) for way in sent.values() for number in way.values()), *references.values()]
    limits = (max(0.5, min([100, *numbers]) / 2), 8 * max([10, *numbers]))
    axis.set(xscale="log", xlim=limits, xlabel="bytes a client over the run, log scale")
    axis.xaxis.set_major_formatter(lambda value, _: in_bytes(value))
    axis.xaxis.minorticks_off()
    _rows(axis, sent)
    return figure


def _byte_bar(axis: Axes, row: float, way: str, number: float, fill: tuple[float, float, float]) -> None:
    axis.barh(row, max(number, 1), height=0.36, color=fill)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8, "zorder": 3, "bbox": BLANK}
    axis.annotate(f"{way} {in_bytes(number)}", (max(number, 1), row), (4, 0), **beside)


def _rows(axis: Axes, names: Collection[str]) -> None:
    """Bars that lie, a name each, the first on top."""
    axis.set_yticks(range(len(names)), [words(name) for name in names], color=INK)
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.grid(axis="x")


@styled
def stage_times(seconds: Mapping[str, float], clients: Sequence[str]) -> Figure:
    """Wall-clock time of every stage, in the pipeline's order; a client's stage bears the client's colour."""
    ordered = dict(sorted(seconds.items(), key=lambda item: _place(item[0])))  # stable: others stay in the order given
    figure, axes = panels(1, 1, 0.9 + 0.3 * max(1, len(ordered)))
    axis, colours = axes[0, 0], client_colours(clients)
    for row, (stage, time) in enumerate(ordered.items()):
        owner = next((client for client in clients if stage.endswith(("@" + client, "_" + client))), None)
        axis.barh(row, time, height=0.62, color=colours[owner] if owner else "#9a9fa6")
        axis.annotate(in_time(time), (time, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set(xlim=(0, 1.15 * max([*ordered.values(), 1.0])), xlabel="wall-clock time (s)")
    _rows(axis, [stage.replace("@", " ") for stage in ordered])
    return figure


def _place(stage: str) -> int:
    return next((place for place, name in enumerate(STAGES) if stage.startswith(name)), len(STAGES))
