"""What differs between two runs A and B: settings, data, scores with intervals, and the answers themselves.

The idea: both policies answered questions, and where those are the same ones, what is hard for both cancels out, so that the
interval of ``B - A`` is a paired bootstrap's (``mor.evaluation.statistics``). Where the questions changed, the two samples
are independent and the interval is as wide as that makes it. Settings and data are compared by what was recorded.
"""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mor.evaluation.metrics import HELD_OUT, MEASURES, Evaluation, Measure, Reply
from mor.evaluation.statistics import Estimate, Interval, mean_of, resample, worst_of
from mor.text import visible
from tasks.reports.figures import (
    BLANK,
    INK,
    QUIET,
    SUMMARIES,
    client_colours,
    in_bytes,
    in_time,
    panels,
    styled,
    suite_order,
    words,
)
from tasks.reports.page import points

PAIRED = 0.5  # share of a suite's questions that both runs must have answered for a paired difference
POLICY = "aligned"
TITLES = {"mean": "mean of clients", "worst": "worst client", HELD_OUT: "held out"}
Turn = Literal["worse", "better", "reworded"]
TURNS: tuple[Turn, ...] = ("worse", "better", "reworded")  # in the order to show them: what got lost first


@dataclass(frozen=True)
class Side:
    """What is known of one run. ``metrics`` are by dotted name; ``evaluation`` is missing where it was not kept."""

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)  # when, from which commit...
    params: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)  # of each client's data
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class Change:
    """A setting, a data version or a number with other values in the two runs; None where a run has it not."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Gap:
    """A score of both policies and ``B - A`` with its interval, shares in [0, 1]; ``paired`` counts the common questions."""

    measure: Measure
    suite: str
    before: float
    after: float
    difference: Interval
    paired: int


@dataclass(frozen=True)
class Answer:
    """A question that both runs answered, in other words."""

    before: Reply
    after: Reply

    @property
    def turn(self) -> Turn:
        """Whether the answer got worse or better in the eyes of its suite's annotator, or only reads otherwise."""
        change = _merit(self.after) - _merit(self.before)
        return "better" if change > 0 else "worse" if change < 0 else "reworded"


@dataclass(frozen=True)
class Difference:
    """Everything that differs between A and B; ``asked`` counts the questions of each suite that both answered."""

    a: Side
    b: Side
    params: list[Change]
    versions: list[Change]
    gaps: list[Gap]
    numbers: list[Change]
    answers: dict[str, list[Answer]]
    asked: dict[str, int]

    @property
    def clients(self) -> list[str]:
        """The clients of B and then those of A that B has not."""
        known = [side.evaluation.clients for side in (self.b, self.a) if side.evaluation]
        return list(dict.fromkeys(client for clients in known for client in clients))

    def turns(self, suite: str) -> Counter[Turn]:
        """How many answers of a suite got worse, got better, or only read otherwise."""
        return Counter(answer.turn for answer in self.answers[suite])


def compare(a: Side, b: Side, *, resamples: int, confidence: float, rng: np.random.Generator) -> Difference:
    """The difference of two runs, B less A."""
    both = _common(a.evaluation, b.evaluation) if a.evaluation and b.evaluation else {}
    numbers = changes(*({name: v for name, v in sorted(side.metrics.items()) if _is_number(name)} for side in (a, b)))
    return Difference(
        a=a,
        b=b,
        params=changes(a.params, b.params),
        versions=changes(a.versions, b.versions),
        gaps=_gaps(a.evaluation, b.evaluation, both, resamples, confidence, rng) if a.evaluation and b.evaluation else [],
        numbers=[change for change in numbers if not _close(change)],
        answers={suite: [Answer(x, y) for x, y in pairs if x.text != y.text] for suite, pairs in both.items()},
        asked={suite: len(pairs) for suite, pairs in both.items()},
    )


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Names whose values differ, in the order of ``after``, then what ``after`` lacks."""
    names = dict.fromkeys([*after, *before])
    return [Change(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def pick(answers: Sequence[Answer], n: int) -> list[Answer]:
    """``n`` answers to show: each turn gets its third, what one lacks the others fill; evenly spaced, not chosen."""
    groups = {turn: [answer for answer in answers if answer.turn == turn] for turn in TURNS}
    quota = dict.fromkeys(TURNS, 0)
    for _ in range(min(n, len(answers))):
        quota[min((turn for turn in TURNS if quota[turn] < len(groups[turn])), key=quota.__getitem__)] += 1
    return [group[i * len(group) // quota[turn]] for turn, group in groups.items() for i in range(quota[turn])]


# --- scores ------------------------------------------------------------------------------------------------------------


def _common(a: Evaluation, b: Evaluation) -> dict[str, list[tuple[Reply, Reply]]]:
    """By suite, both policies' replies to the questions that are the same in every respect, in B's order."""
    found = {}
    for suite in b.suites:
        before = {_question(reply): reply for reply in a.answers[POLICY].get(suite, [])}
        replies = b.answers[POLICY][suite]
        found[suite] = [(before[_question(reply)], reply) for reply in replies if _question(reply) in before]
    return found


def _question(reply: Reply) -> tuple[str, ...]:
    return reply.id, reply.image, reply.prompt, reply.answer


def _merit(reply: Reply) -> int:
    return 2 * reply.preferred + reply.right


def _gaps(
    a: Evaluation,
    b: Evaluation,
    both: Mapping[str, Sequence[tuple[Reply, Reply]]],
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> list[Gap]:
    suites = [suite for suite in b.suites if suite in a.suites]
    paired = {s: len(both[s]) >= PAIRED * max(len(e.answers[POLICY][s]) for e in (a, b)) for s in suites}
    gaps = []
    for measure, flag in MEASURES.items():
        estimates: dict[str, tuple[Estimate, Estimate]] = {}
        for suite in suites:
            replies = tuple(zip(*both[suite], strict=True)) if paired[suite] else [e.answers[POLICY][suite] for e in (a, b)]
            before, after = ([getattr(reply, flag) for reply in side] for side in replies)
            estimates[suite] = _resampled(before, after, paired[suite], resamples, rng)
        own = [estimates[client] for client in b.clients if client in a.clients and client in estimates]
        if own:
            before_all, after_all = zip(*own, strict=True)
            estimates["mean"] = mean_of(before_all), mean_of(after_all)
            estimates["worst"] = worst_of(before_all), worst_of(after_all)
        counts = {suite: len(both[suite]) if paired[suite] else 0 for suite in suites}
        counts |= dict.fromkeys(SUMMARIES, sum(counts[c] for c in b.clients if c in counts))
        for suite in suite_order(estimates, b.clients):
            old, new = estimates[suite]
            interval = (new - old).interval(confidence)
            gaps.append(Gap(measure, suite, old.value, new.value, interval, counts[suite]))
    return gaps


def _resampled(
    before: Sequence[bool], after: Sequence[bool], paired: bool, resamples: int, rng: np.random.Generator
) -> tuple[Estimate, Estimate]:
    if paired:
        joint = resample({"a": before, "b": after}, resamples, rng)
        return joint["a"], joint["b"]
    return resample({"a": before}, resamples, rng)["a"], resample({"b": after}, resamples, rng)["b"]


# --- other numbers -----------------------------------------------------------------------------------------------------


def _is_number(name: str) -> bool:
    """Scores are compared by question and settings as settings."""
    return not name.startswith(("models.", "settings.")) and not name.endswith((".low", ".high"))


def _close(change: Change) -> bool:
    return None not in (change.before, change.after) and bool(np.isclose(change.before, change.after, rtol=1e-6, atol=1e-9))


def telling(change: Change) -> bool:
    """Whether a number is worth a line where there is little room: judges on their own clients' pairs, router, bytes."""
    parts = change.name.split(".")
    if parts[0] == "reward_models":
        return parts[2] != "pair_accuracy" or parts[1] == parts[3]
    return parts[0] in {"router", "wire"} and "weights" not in parts


def shown(name: str, value: float | None) -> str:
    """A number in its unit."""
    if value is None:
        return "–"
    if name.endswith("_bytes"):
        return in_bytes(value)
    return in_time(value) if "seconds" in name.split(".") else f"{value:.3f}"


# --- the page ----------------------------------------------------------------------------------------------------------


@styled
def forest(gaps: Sequence[Gap], clients: Sequence[str]) -> Figure:
    """``B - A`` in points with its interval for every suite, one panel a measure; what lies right of zero got better."""
    figure, axes = panels(1, len(MEASURES), 0.95 + 0.3 * max(1, len(gaps) // len(MEASURES)), sharey=True, sharex=True)
    titles = {"preference": "Preference satisfaction", "accuracy": "Accuracy, whatever the style"}
    for axis, measure in zip(axes[0], MEASURES, strict=True):
        rows = [gap for gap in gaps if gap.measure == measure]
        axis.axvline(0, color=QUIET, linewidth=1, zorder=1)
        for place, gap in enumerate(rows):
            _whisker(axis, place, gap, client_colours(clients).get(gap.suite, "#7d828a"))
        axis.set(title=titles[measure], xlabel="B less A (points)")
        axis.set_yticks(range(len(rows)), [words(TITLES.get(gap.suite, gap.suite)) for gap in rows], color=INK)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
        axis.margins(x=0.08)
    axes[0, 0].set_ylim(max(1, len(gaps) // len(MEASURES)) - 0.4, -0.7)  # the first suite on top, with room for its figure
    return figure


def _whisker(axis: Axes, place: int, gap: Gap, colour: str) -> None:
    """An estimate with its interval, hollow where that holds zero, its value above."""
    low, value, high = (100 * x for x in (gap.difference.low, gap.difference.value, gap.difference.high))
    sure = low > 0 or high < 0
    axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", zorder=2)
    axis.plot(value, place, "o", color=colour, markerfacecolor=colour if sure else "white", markersize=6.5, zorder=3)
    above: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 8, "bbox": BLANK}
    axis.annotate(points(gap.difference.value), (value, place), (0, 5), **above)


def render_difference(
    difference: Difference,
    picture: bytes | None,
    images: Mapping[str, bytes],
    *,
    samples: int,
    confidence: float,
    links: Mapping[str, str],
) -> str:
    """A self-contained page. ``picture`` is the forest plot and ``images`` the questions' images by name, as PNGs."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "inline": lambda png: Markup("data:image/png;base64,") + b64encode(png).decode(),
        "words": words,
        "points": points,
    }
    environment.filters |= filters
    environment.tests["worth_a_line"] = telling
    environment.globals["shown"] = shown
    style, _, _ = loader.get_source(environment, "report.html.j2")[0].partition("<style>")[2].partition("</style>")
    return environment.get_template("diff.html.j2").render(
        style=Markup(style),
        difference=difference,
        gaps={(gap.measure, gap.suite): gap for gap in difference.gaps},
        suites=list(dict.fromkeys(gap.suite for gap in difference.gaps)),
        picture=picture,
        images=images,
        samples={suite: pick(answers, samples) for suite, answers in difference.answers.items() if answers},
        titles=TITLES,
        colours=client_colours(difference.clients),
        confidence=confidence,
        links=links,
    )
