"""The page of the difference of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mor.evaluation.metrics import MEASURES
from mor.text import words
from tasks.reports.difference import RunDifference, ScoreDifference, format_metric, pick_answers, worth_a_line
from tasks.reports.html import render_page
from tasks.reports.plotting import BLANK, INK, NO_CLIENT, QUIET, SUITE_TITLES, TITLES, client_colours, panels, styled
from tasks.reports.units import in_points


@styled
def forest_plot(scores: Sequence[ScoreDifference], clients: Sequence[str]) -> Figure:
    """``B - A`` in points with its interval for every suite, one panel a measure; what lies right of zero got better."""
    figure, axes = panels(1, len(MEASURES), 0.95 + 0.3 * max(1, len(scores) // len(MEASURES)), sharey=True, sharex=True)
    for axis, measure in zip(axes[0], MEASURES, strict=True):
        rows = [score for score in scores if score.measure == measure]
        axis.axvline(0, color=QUIET, linewidth=1, zorder=1)
        for place, score in enumerate(rows):
            _whisker(axis, place, score, client_colours(clients).get(score.suite, NO_CLIENT))
        axis.set(title=TITLES[measure], xlabel="B less A (points)")
        axis.set_yticks(range(len(rows)), [words(SUITE_TITLES.get(score.suite, score.suite)) for score in rows], color=INK)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
        axis.margins(x=0.08)
    axes[0, 0].set_ylim(max(1, len(scores) // len(MEASURES)) - 0.4, -0.7)  # the first suite on top, with room for its figure
    return figure


def _whisker(axis: Axes, place: int, score: ScoreDifference, colour: str) -> None:
    """An estimate with its interval, hollow where that holds zero, its value above."""
    low, value, high = (100 * x for x in (score.difference.low, score.difference.value, score.difference.high))
    sure = low > 0 or high < 0
    axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
    axis.plot(value, place, "o", color=colour, markerfacecolor=colour if sure else "white", markersize=6.5, zorder=3)
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 8, "bbox": BLANK}
    axis.annotate(in_points(score.difference.value), (value, place), (0, 5), **above)


def render_diff(
    difference: RunDifference,
    picture: bytes | None,
    images: Mapping[str, bytes],
    *,
    samples: int,
    confidence: float,
    links: Mapping[str, str],
) -> str:
    """A self-contained page. ``picture`` is the forest plot and ``images`` the questions' images by name, as PNGs."""
    return render_page(
        Path(__file__).with_name("diff.html.j2"),
        difference=difference,
        scores={(score.measure, score.suite): score for score in difference.scores},
        suites=list(dict.fromkeys(score.suite for score in difference.scores)),
        picture=picture,
        images=images,
        samples={suite: pick_answers(answers, samples) for suite, answers in difference.answers.items() if answers},
        main_numbers=[number for number in difference.numbers if worth_a_line(number)],
        other_numbers=[number for number in difference.numbers if not worth_a_line(number)],
        format_metric=format_metric,
        titles=SUITE_TITLES,
        colours=client_colours(difference.clients),
        no_client=NO_CLIENT,
        confidence=confidence,
        links=links,
    )
