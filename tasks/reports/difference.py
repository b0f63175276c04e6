"""What differs between two runs A and B: settings, data, scores with intervals, and the answers themselves.

The idea: both policies answered questions, and where those are the same ones, what is hard for both cancels out, so that the
interval of ``B - A`` is a paired bootstrap's (``mor.evaluation.statistics``). Where the questions changed, the two samples
are independent and the interval is as wide as that makes it. Settings and data are compared by what was recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mor.config import SUMMARIES
from mor.evaluation.metrics import MEASURES, Evaluation, Judged, Measure
from mor.evaluation.statistics import Estimate, Interval, mean_of, resample, worst_of
from tasks.reports.plotting import suite_order
from tasks.reports.units import in_bytes, in_time

PAIRED = 0.5  # share of a suite's questions that both runs must have answered for a paired difference
POLICY = "aligned"
CommonReplies = dict[str, list[tuple[Judged, Judged]]]  # by suite, what A and B said to the same questions
Outcome = Literal["worse", "better", "reworded"]
OUTCOMES: tuple[Outcome, ...] = ("worse", "better", "reworded")  # in the order to show them: what got lost first


@dataclass(frozen=True)
class ComparedRun:
    """What is known of one run. ``metrics`` are by dotted name; ``evaluation`` is missing where it was not kept."""

    name: str
    facts: Mapping[str, str] = field(default_factory=dict)  # when, from which commit...
    params: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)  # of each client's data
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluation: Evaluation | None = None


@dataclass(frozen=True)
class ValueChange:
    """A setting, a data version or a number with other values in the two runs; None where a run has it not."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True)
class ScoreDifference:
    """A score of both policies and ``B - A`` with its interval, shares in [0, 1]; ``paired`` counts the common questions."""

    measure: Measure
    suite: str
    before: float
    after: float
    difference: Interval
    paired: int


@dataclass(frozen=True)
class AnswerChange:
    """A question that both runs answered, in other words."""

    before: Judged
    after: Judged

    @property
    def outcome(self) -> Outcome:
        """Whether the answer got worse or better in the eyes of its suite's annotator, or only reads otherwise."""
        before, after = ((reply.preferred, reply.right) for reply in (self.before, self.after))
        return "better" if after > before else "worse" if after < before else "reworded"


@dataclass(frozen=True)
class RunDifference:
    """Everything that differs between A and B; ``asked`` counts the questions of each suite that both answered."""

    a: ComparedRun
    b: ComparedRun
    params: list[ValueChange]
    versions: list[ValueChange]
    scores: list[ScoreDifference]
    numbers: list[ValueChange]
    answers: dict[str, list[AnswerChange]]
    asked: dict[str, int]

    @property
    def clients(self) -> list[str]:
        """The clients of B and then those of A that B has not."""
        known = [side.evaluation.clients for side in (self.b, self.a) if side.evaluation]
        return list(dict.fromkeys(client for clients in known for client in clients))

    def outcomes(self, suite: str) -> Counter[Outcome]:
        """How many answers of a suite got worse, got better, or only read otherwise."""
        return Counter(answer.outcome for answer in self.answers[suite])


def compare_results(
    a: ComparedRun, b: ComparedRun, *, resamples: int, confidence: float, rng: np.random.Generator
) -> RunDifference:
    """The difference of two runs, B less A."""
    both: CommonReplies = {}
    scores: list[ScoreDifference] = []
    if a.evaluation and b.evaluation:
        both = _common(a.evaluation, b.evaluation)
        scores = _score_differences(a.evaluation, b.evaluation, both, resamples, confidence, rng)
    numbers = value_changes(*({name: v for name, v in sorted(side.metrics.items()) if _is_number(name)} for side in (a, b)))
    return RunDifference(
        a, b, value_changes(a.params, b.params), value_changes(a.versions, b.versions), scores,
        numbers=[change for change in numbers if not _close(change)],
        answers={suite: [AnswerChange(x, y) for x, y in pairs if x.text != y.text] for suite, pairs in both.items()},
        asked={suite: len(pairs) for suite, pairs in both.items()},
    )  # fmt: skip


def value_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[ValueChange]:
    """Names whose values differ, in the order of ``after``, then what ``after`` lacks."""
    names = dict.fromkeys([*after, *before])
    return [ValueChange(name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]


def pick_answers(answers: Sequence[AnswerChange], n: int) -> list[AnswerChange]:
    """``n`` answers to show: each outcome gets its third, what one lacks the others fill; evenly spaced, not chosen."""
    groups = {outcome: [answer for answer in answers if answer.outcome == outcome] for outcome in OUTCOMES}
    quota = dict.fromkeys(OUTCOMES, 0)
    for _ in range(min(n, len(answers))):
        quota[min((o for o in OUTCOMES if quota[o] < len(groups[o])), key=quota.__getitem__)] += 1
    return [group[i * len(group) // quota[outcome]] for outcome, group in groups.items() for i in range(quota[outcome])]


# --- scores ------------------------------------------------------------------------------------------------------------


def _common(a: Evaluation, b: Evaluation) -> CommonReplies:
    """By suite, both policies' replies to the questions that are the same in every respect, in B's order."""
    found = {}
    for suite in b.suites:
        before = {_question(reply): reply for reply in a.answers[POLICY].get(suite, [])}
        replies = b.answers[POLICY][suite]
        found[suite] = [(before[_question(reply)], reply) for reply in replies if _question(reply) in before]
    return found


def _question(reply: Judged) -> tuple[str, ...]:
    return reply.id, reply.image, reply.prompt, reply.answer


def _score_differences(
    a: Evaluation, b: Evaluation, both: CommonReplies, resamples: int, confidence: float, rng: np.random.Generator
) -> list[ScoreDifference]:
    """Over the common questions of a suite where most are common, else over each run's own."""
    samples = {suite: (a.answers[POLICY][suite], b.answers[POLICY][suite]) for suite in b.suites if suite in a.suites}
    paired = {suite: len(both[suite]) for suite, sides in samples.items() if len(both[suite]) >= PAIRED * max(map(len, sides))}
    samples |= {suite: ([old for old, _ in both[suite]], [new for _, new in both[suite]]) for suite in paired}
    paired |= dict.fromkeys(SUMMARIES, sum(paired.get(client, 0) for client in b.clients))
    found = []
    for measure, flag in MEASURES.items():
        estimates = {suite: _resampled(flag, *sides, suite in paired, resamples, rng) for suite, sides in samples.items()}
        own = [estimates[client] for client in b.clients if client in a.clients and client in estimates]
        if own:
            before, after = zip(*own, strict=True)
            estimates |= {"mean": (mean_of(before), mean_of(after)), "worst": (worst_of(before), worst_of(after))}
        for suite in suite_order(estimates, b.clients):
            old, new = estimates[suite]
            interval = (new - old).interval(confidence)
            found.append(ScoreDifference(measure, suite, old.value, new.value, interval, paired.get(suite, 0)))
    return found


def _resampled(
    flag: str, before: Sequence[Judged], after: Sequence[Judged], paired: bool, resamples: int, rng: np.random.Generator
) -> tuple[Estimate, Estimate]:
    a, b = ({side: [getattr(reply, flag) for reply in replies]} for side, replies in (("a", before), ("b", after)))
    drawn = resample(a | b, resamples, rng) if paired else resample(a, resamples, rng) | resample(b, resamples, rng)
    return drawn["a"], drawn["b"]


# --- other numbers -----------------------------------------------------------------------------------------------------


def _is_number(name: str) -> bool:
    """Scores are compared by question and settings as settings."""
    return not name.startswith(("models.", "settings.")) and not name.endswith((".low", ".high"))


def _close(change: ValueChange) -> bool:
    return None not in (change.before, change.after) and bool(np.isclose(change.before, change.after, rtol=1e-6, atol=1e-9))


def worth_a_line(change: ValueChange) -> bool:
    """Whether a number is worth a line where there is little room: judges on their own clients' pairs, router, bytes."""
    parts = change.name.split(".")
    if parts[0] == "reward_models":
        return parts[2] != "pair_accuracy" or parts[1] == parts[3]
    return parts[0] in {"router", "wire"} and "weights" not in parts


def format_metric(name: str, value: float | None) -> str:
    """A number in its unit."""
    if value is None:
        return "–"
    if name.endswith("_bytes"):
        return in_bytes(value)
    return in_time(value) if "seconds" in name.split(".") else f"{value:.3f}"
