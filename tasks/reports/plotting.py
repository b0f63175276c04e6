"""How figures look: made for 800 pixels of width, a colour per client that is the same in every figure (Paul Tol's
*muted* scheme, told apart by colour-blind readers), greys for what is no client, numbers where they are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import cycle
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mor.config import HELD_OUT, SUMMARIES

P = ParamSpec("P")
WIDTH = 8.0  # inches; 100 pixels each in a page
PALETTE = ("#332288", "#44AA99", "#CC6677", "#DDCC77", "#88CCEE", "#882255", "#117733", "#999933", "#AA4499")
INK, QUIET, FAINT = "#26292e", "#6b7078", "#d9dce0"
NO_CLIENT = "#7d828a"  # for the summaries and the held-out suite
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # behind words that cross a line
TITLES = {"preference": "Preference satisfaction", "accuracy": "Accuracy, whatever the style"}  # of the measures
SUITE_TITLES = {"mean": "mean of clients", "worst": "worst client", HELD_OUT: "held out"}
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
class Drawing:
    """A figure with its words; ``name`` is a file name without its ending."""

    name: str
    title: str
    caption: str
    figure: Figure


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style of all figures."""

    @wraps(plot)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return plot(*args, **kwargs)

    return wrapper


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, NDArray[Any]]:
    """A figure without pyplot, so without a window or global state, and its axes (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def blend(colour: str, other: str, share: float) -> tuple[float, float, float]:
    """``colour`` with a share of ``other`` in it, in [0, 1]."""
    red, green, blue = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return red, green, blue


def client_colours(clients: Sequence[str]) -> dict[str, str]:
    """One colour per client, by its place in ``params.yaml``; from the tenth client on they repeat."""
    return dict(zip(clients, cycle(PALETTE), strict=False))


def suite_order(found: Iterable[str], clients: Sequence[str]) -> list[str]:
    """Names of scores in the order to show them: the clients' own suites, their summaries, what no client trained on."""
    found = list(found)
    own = [name for name in (*clients, *SUMMARIES) if name in found]
    return own + [name for name in found if name not in own]
