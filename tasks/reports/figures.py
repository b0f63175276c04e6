"""Figures: numbers in, a matplotlib ``Figure`` out; saving is the caller's.

One style for all: made for 800 pixels of width, a colour per client that is the same in every figure (Paul Tol's
*muted* scheme, told apart by colour-blind readers), greys for what is no client, numbers where they are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from mor.evaluation.metrics import HELD_OUT

P = ParamSpec("P")
WIDTH = 8.0  # inches; 100 pixels each in the report
PALETTE = ("#332288", "#44AA99", "#CC6677", "#DDCC77", "#88CCEE", "#882255", "#117733", "#999933", "#AA4499")
INK, QUIET, FAINT = "#26292e", "#6b7078", "#d9dce0"
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # behind words that cross a line
STAGES = ("zoo", "fedvqa", "validate", "reward", "router", "align", "evaluate", "report")
SUMMARIES = ("mean", "worst")
SMOOTHING = 9  # GRPO steps in the running mean of a learning curve
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": "#b9bdc3",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "grid.color": "#eceef0",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": INK,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
}


@dataclass(frozen=True)
class RouterWeight:
    """A row of ``reports/router_weights.csv``: mean weight of ``client`` on the prompts of ``category`` after ``round``."""

    round: int
    category: str
    client: str
    weight: float


def client_colours(clients: Sequence[str]) -> dict[str, str]:
    """One colour a client, by its place in ``params.yaml``; from the tenth client on they repeat."""
    return dict(zip(clients, cycle(PALETTE), strict=False))


def suite_order(found: Iterable[str], clients: Sequence[str]) -> list[str]:
    """Names of scores in the order to show them: the clients' own suites, their summaries, what no client trained on."""
    found = list(found)
    own = [name for name in (*clients, *SUMMARIES) if name in found]
    return own + [name for name in found if name not in own]


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style of all figures."""

    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return plot(*args, **kwargs)

    wrapper.__doc__, wrapper.__name__ = plot.__doc__, plot.__name__
    return wrapper


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, NDArray[Any]]:
    """A figure without pyplot, so without a window or global state, and its axes (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def mix(colour: str, other: str, share: float) -> tuple[float, float, float]:
    """``colour`` with a share of ``other`` in it, in [0, 1]."""
    red, green, blue = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return red, green, blue


def words(name: str) -> str:
    """A name for people: ``held_out`` -> ``held out``."""
    return name.replace("_", " ")


@styled
def scores(models: Mapping[str, Any], clients: Sequence[str]) -> Figure:
    """Base against aligned for every suite, with intervals; ``models`` is ``metrics["models"]``."""
    figure, axes = panels(2, 1, 5.2, sharex=True)
    colours = client_colours(clients)
    titles = {"preference": "Preference satisfaction", "accuracy": "Accuracy, whatever the style"}
    found = models["base"]["preference"]
    summaries = [name for name in ("mean", "worst") if name in found]
    suites = [*(c for c in clients if c in found), *summaries, *(n for n in found if n not in {*clients, *summaries})]
    places = np.arange(len(suites)) + 0.35 * np.array(
        [(s not in colours) + (s not in {*colours, "mean", "worst"}) for s in suites]
    )
    for axis, (measure, title) in zip(axes[:, 0], titles.items(), strict=True):
        for place, suite in zip(places, suites, strict=True):
            colour = colours.get(suite, "#7d828a")
            for offset, model, fill in ((-0.2, "base", mix(colour, "white", 0.68)), (0.2, "aligned", to_rgb(colour))):
                _bar(axis, place + offset, models[model][measure][suite], fill)
        axis.set(ylim=(0, 1.09), ylabel="share of answers", title=title, yticks=np.linspace(0, 1, 6))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.grid(axis="y")
        axis.tick_params(axis="x", length=0)
    labels = {"mean": "mean\nof clients", "worst": "worst\nclient", HELD_OUT: "held out"}
    axes[-1, 0].set_xticks(places, [labels.get(suite, suite.replace("_", "\n")) for suite in suites], color=INK)
    keys = [Patch(color="#d3d5d8", label="base"), Patch(color="#7d828a", label="aligned")]
    axes[0, 0].legend(handles=keys, loc="lower right", bbox_to_anchor=(1, 1.0), ncols=2, borderaxespad=0.2)
    return figure


def _bar(axis: Axes, x: float, interval: Mapping[str, float], fill: tuple[float, float, float]) -> None:
    value, low, high = interval["value"], interval["low"], interval["high"]
    axis.bar(x, value, width=0.36, color=fill)
    halo = [Stroke(linewidth=2.4, foreground="white"), Normal()]  # visible on dark bars too
    axis.plot([x, x], [low, high], color=INK, linewidth=1, solid_capstyle="butt", path_effects=halo)
    axis.annotate(f"{100 * value:.0f}", (x, high), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8)


@styled
def routing(weights: Sequence[RouterWeight], clients: Sequence[str], most: int = 4) -> Figure:
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
    steps = np.arange(1, len(rounds) + 1)
    column = {
        key: np.array([row.get(key, np.nan) for row in rounds], dtype=np.float64) for key in (rounds[0] if rounds else {})
    }
    colours = client_colours(clients)
    single = {"reward": "mixed reward", "kl": "KL to base (nats)", "entropy": "entropy (nats a token)"}
    for axis, (key, label) in zip(axes.flat, single.items(), strict=False):
        _curve(axis, steps, column.get(key), INK)
        axis.set_title(label)
    for axis, prefix, label in ((axes[1, 0], "score", "clients' scores"), (axes[1, 1], "weight", "router weights")):
        for client in clients:
            _curve(axis, steps, column.get(f"{prefix}_{client}"), colours[client], words(client))
        axis.set_title(label)
    axes[1, 1].set_ylim(0, 1)
    _curve(axes[1, 2], steps, column.get("completion_length"), INK)
    axes[1, 2].set_title("answer length (tokens)")
    number = column.get("round", np.zeros(len(rounds)))
    for axis in axes.flat:
        for begin in np.flatnonzero(np.diff(number)):
            axis.axvline(begin + 1.5, color=FAINT, linewidth=1, zorder=0)
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.grid(axis="y")
    for axis in axes[1]:
        axis.set_xlabel("GRPO step")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return figure


def _curve(axis: Axes, steps: NDArray[Any], values: NDArray[np.float64] | None, colour: str, label: str | None = None) -> None:
    """The raw curve, faint, below its running mean over ``SMOOTHING`` steps; a column that is not there draws nothing."""
    if values is None or np.isnan(values).all():
        return
    known = ~np.isnan(values)
    steps, values = steps[known], values[known]
    window = np.ones(min(SMOOTHING, len(values)))
    counts = np.convolve(np.ones_like(values), window, "same")  # fewer neighbours at the ends
    axis.plot(steps, values, color=colour, alpha=0.22, linewidth=0.9)
    axis.plot(steps, np.convolve(values, window, "same") / counts, color=colour, label=label)


@styled
def wire(
    sent: Mapping[str, Mapping[str, float]], clients: Sequence[str], references: Mapping[str, float] | None = None
) -> Figure:
    """Bytes up and down each client over the run, log scale; ``references`` are bytes a client in one direction."""
    figure, axes = panels(1, 1, 1.2 + 0.62 * max(1, len(sent)))
    axis, colours = axes[0, 0], client_colours(clients)
    for row, (client, way) in enumerate(sent.items()):
        colour = colours.get(client, QUIET)
        for offset, key, fill in ((-0.2, "up_bytes", to_rgb(colour)), (0.2, "down_bytes", mix(colour, "white", 0.55))):
            number = float(way[key])
            axis.barh(row + offset, max(number, 1), height=0.36, color=fill)
            text = f"{'up' if key == 'up_bytes' else 'down'} {in_bytes(number)}"
            place = {"textcoords": "offset points", "va": "center", "fontsize": 8, "zorder": 3}
            axis.annotate(text, (max(number, 1), row + offset), (4, 0), bbox=BLANK, **place)
    numbers = [*(float(number) for way in sent.values() for number in way.values()), *(references or {}).values()]
    for name, number in (references or {}).items():
        axis.axvline(number, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        label = f"{name}\n{in_bytes(number)}"
        axis.annotate(label, (number, 1), (0, 3), ("data", "axes fraction"), "offset points", ha="center", fontsize=8)
    axis.set(
        xscale="log",
        xlim=(max(0.5, min([100, *numbers]) / 2), 8 * max([10, *numbers])),
        xlabel="bytes a client over the run, log scale",
    )
    axis.set_yticks(range(len(sent)), [words(client) for client in sent], color=INK)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_formatter(lambda value, _: in_bytes(value))
    axis.xaxis.minorticks_off()
    axis.invert_yaxis()
    axis.grid(axis="x")
    return figure


@styled
def seconds(stages: Mapping[str, float], clients: Sequence[str]) -> Figure:
    """Wall-clock time of every stage, in the pipeline's order; a client's stage bears the client's colour."""
    stages = dict(sorted(stages.items(), key=lambda item: _place(item[0])))  # stable: others stay in the order given
    figure, axes = panels(1, 1, 0.9 + 0.3 * max(1, len(stages)))
    axis, colours = axes[0, 0], client_colours(clients)
    for row, (stage, time) in enumerate(stages.items()):
        owner = next((client for client in clients if stage.endswith(("@" + client, "_" + client))), None)
        axis.barh(row, time, height=0.62, color=colours[owner] if owner else "#9a9fa6")
        axis.annotate(in_time(time), (time, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(stages)), [words(stage.replace("@", " ")) for stage in stages], color=INK)
    axis.set(xlim=(0, 1.15 * max([*stages.values(), 1.0])), xlabel="wall-clock time (s)")
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.grid(axis="x")
    return figure


def _place(stage: str) -> int:
    return next((place for place, name in enumerate(STAGES) if stage.startswith(name)), len(STAGES))


def in_bytes(number: float) -> str:
    """``1234567`` -> ``1.23 MB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def in_time(number: float) -> str:
    """Seconds for people: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if number < 9.95:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
