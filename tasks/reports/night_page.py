"""The page of one night: how it ended, what was delivered and how that drifted, what ran, what the gate found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pydantic import BaseModel

from mor.data.drift import DECISIONS, Finding
from mor.text import words
from tasks.reports.html import render_page
from tasks.reports.plotting import FAINT, INK, QUIET, panels, styled

COLOURS = {"continue": "#44AA99", "warn": "#DDAA33", "stop": "#CC3311"}


class Night(BaseModel):
    """``reports/night.json``: deliveries, stages and verdict as their own modules describe them."""

    night: str
    ending: str
    message: str
    deliveries: list[dict[str, Any]]
    stages: list[dict[str, Any]]  # stage, state, seconds
    verdict: dict[str, Any] | None  # checks
    metrics: dict[str, Any]  # reports/metrics.json


def render_night(night: Night, drift: bytes | None) -> str:
    """A self-contained HTML page; ``drift`` is a picture of the deliveries' findings as PNG."""
    return render_page(Path(__file__).with_name("night.html.j2"), night=night, drift=drift)


@styled
def drift_figure(deliveries: Mapping[str, Sequence[Finding]]) -> Figure:
    """A panel a delivery: every distance as a dot between the limits that warn and that hold it back."""
    rows = [max(1, len(findings)) for findings in deliveries.values()]
    height = 0.7 + 0.55 * len(rows) + 0.24 * sum(rows)
    figure, axes = panels(len(rows), 1, height, sharex=True, gridspec_kw={"height_ratios": rows})
    for axis, (title, findings) in zip(axes[:, 0], deliveries.items(), strict=True):
        _distances(axis, findings)
        axis.set_title(title)
    axes[-1, 0].set_xlabel("distance from what the client had")
    keys = [Line2D([], [], color=COLOURS[name], marker="o", linestyle="", label=name) for name in DECISIONS]
    keys += [Line2D([], [], color=QUIET, linestyle=":", label="limit: warn"), Line2D([], [], color=INK, label="limit: stop")]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return figure


def _distances(axis: Axes, findings: Sequence[Finding]) -> None:
    """Dots of one delivery with their limits and what they say."""
    for row, finding in enumerate(findings):
        place = min(max(finding.statistic, 0.0), 1.0)
        colour = COLOURS[finding.decision]
        axis.plot([0, 1], [row, row], color=FAINT, linewidth=0.8, zorder=0)
        axis.plot([finding.warn] * 2, [row - 0.38, row + 0.38], color=QUIET, linestyle=":", linewidth=1.4)
        axis.plot([finding.stop] * 2, [row - 0.38, row + 0.38], color=INK, linewidth=1.4)
        axis.plot([0, place], [row, row], color=colour, linewidth=2.4, solid_capstyle="butt")
        axis.plot(place, row, "o", color=colour, markersize=6, clip_on=False)
        loud = finding.decision != "continue"
        said = f"{finding.text} (p {finding.p_value:.2g})"
        axis.annotate(said, (1.04, row), va="center", fontsize=7.5, color=INK if loud else QUIET, annotation_clip=False)
    axis.set_yticks(range(len(findings)), [words(finding.name) for finding in findings], color=INK)
    axis.set(xlim=(0, 1), ylim=(max(1, len(findings)) - 0.5, -0.5), xticks=np.linspace(0, 1, 6))
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
