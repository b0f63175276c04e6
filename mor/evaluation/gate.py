"""The gate between a candidate and the champion: a list of checks, each with its number, its bound and a sentence.

Answers to the same questions are compared in pairs (``mor.evaluation.statistics``). A client counts as no worse if the
*lower end* of the interval of its change lies above minus the margin (a non-inferiority test): what could as well be a
loss is not let through. Compared are preference satisfaction and accuracy, with

- the **champion**, by a night's margin; without a champion, with the base;
- the **baseline**, a version that a person approved, by the total margin: many small losses add up against it.

A client that the champion or the baseline was not aligned with is compared with the base in that one's place. What was not
measured does not pass, and neither does a candidate that was spared questions which the others had to answer. At last the
candidate is loaded as whoever serves it would load it (``Trial``), and must answer as it did when it was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mor.config import HELD_OUT, Gate
from mor.evaluation.metrics import MEASURES, Judged, Measure
from mor.evaluation.statistics import Interval, resample

BASE, CHAMPION, BASELINE = "base", "champion", "baseline"
AGREEMENT = 0.9  # least share of answers that a served policy gives as it was evaluated; float errors turn a near tie round
SUM = 1e-3  # largest distance of a prompt's weights from adding up to 1
QUESTIONS, OWN, SERVED = "questions", "the candidate by itself", "as served from the registry"
_WORDS: dict[Measure, str] = {"preference": "preference satisfaction", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Check:
    """One condition; ``low`` and ``high`` are the interval of ``value`` where it has one, ``group`` its heading."""

    name: str
    passed: bool
    value: float
    low: float | None
    high: float | None
    bound: float
    text: str
    group: str = ""


@dataclass(frozen=True)
class Verdict:
    """Every check; the candidate passes if all do."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether the candidate may become champion."""
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Why it may not."""
        return [check.text for check in self.checks if not check.passed]


@dataclass(frozen=True)
class Other:
    """A policy that the candidate is compared with, called ``name``: its ``answers`` to the candidate's questions.

    ``suites`` are those that it answered when it was a candidate itself, ``clients`` those that it was aligned with; for
    the suites in ``new``, of clients that it was not aligned with, ``answers`` are the base's.
    """

    name: str
    answers: Mapping[str, Sequence[Judged]]
    suites: Collection[str] = ()
    clients: Collection[str] = ()
    new: Collection[str] = ()


def judge(
    candidate: Mapping[str, Sequence[Judged]],
    others: Sequence[Other],
    *,
    clients: Sequence[str],
    kl: float,
    calibration: Mapping[str, tuple[float, float]],
    settings: Gate,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Verdict:
    """Compare suite by suite with each of ``others``; all have answered the same questions.

    ``kl`` is the policy's distance from the base in nats, ``calibration`` each client's mean and deviation of its reward
    model's scores on pairs that it was not calibrated on. Raises ``ValueError`` where the questions differ.
    """
    asked = {suite: replies for suite, replies in candidate.items() if suite in (*clients, HELD_OUT) and replies}
    changes: dict[str, list[Check]] = {other.name: [] for other in others}
    for suite, replies in asked.items():
        for name, found in _compared(suite, replies, others, settings, resamples, confidence, rng).items():
            changes[name] += found
    compared = [check for found in changes.values() for check in found]
    if not compared:
        text = (
            "no client has evaluation questions, so nothing shows that the candidate is no worse; add data/eval/<client>.jsonl"
        )
        compared = [Check("preference", False, math.nan, None, None, 0.0, text, QUESTIONS)]
    own = [_kl(kl, settings.kl_budget), *_calibrated(calibration, settings)]
    return Verdict([*_questions(candidate, others, clients), *compared, *own])


def _compared(
    suite: str, replies: Sequence[Judged], others: Sequence[Other],
    settings: Gate, resamples: int, confidence: float, rng: np.random.Generator,
) -> dict[str, list[Check]]:  # fmt: skip
    """The checks of one suite by the name of the other; all policies are resampled together, hence in pairs."""
    columns: dict[str, list[bool]] = {}
    for name, answers in {"candidate": replies, **{other.name: other.answers[suite] for other in others}}.items():
        if [reply.id for reply in replies] != [reply.id for reply in answers]:
            raise ValueError(f"{suite}: candidate and {name} must answer the same questions in the same order")
        columns |= {f"{name}.{measure}": [getattr(r, flag) for r in answers] for measure, flag in MEASURES.items()}
    estimates, found = resample(columns, resamples, rng), dict[str, list[Check]]()
    for number, other in enumerate(others):
        if suite in other.new and any(suite in before.new for before in others[:number]):
            continue  # compared with the base already, by a narrower margin
        for measure in MEASURES:
            change = (estimates[f"candidate.{measure}"] - estimates[f"{other.name}.{measure}"]).interval(confidence)
            found.setdefault(other.name, []).append(_no_worse(suite, measure, change, settings, other))
    return found


def _no_worse(suite: str, measure: Measure, change: Interval, settings: Gate, other: Other) -> Check:
    if measure == "accuracy":
        margin = settings.accuracy_margin
    elif other.name == BASELINE:
        margin = settings.total_margin
    else:
        margin = settings.held_out_margin if suite == HELD_OUT else settings.margin
    whose = f"the base's, for {suite} is new since the {other.name}" if suite in other.new else f"the {other.name}'s"
    text = (
        f"{suite}: {_WORDS[measure]} changed by {change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f}) "
        f"from {whose}; the lower end must be above {-margin:+.3f}"
    )
    name = f"{measure}.{suite}" + (f".{BASELINE}" if other.name == BASELINE else "")
    return Check(name, change.low > -margin, change.value, change.low, change.high, -margin, text, f"against the {other.name}")


def _questions(candidate: Mapping[str, Sequence[Judged]], others: Sequence[Other], clients: Sequence[str]) -> list[Check]:
    """What is to be said of suites that were not asked; ``value`` is the number of questions, of which one is needed."""

    def check(suite: str, passed: bool, text: str) -> Check:
        return Check(f"questions.{suite}", passed, 0.0, None, None, 0.0 if passed else 1.0, f"{suite}: {text}", QUESTIONS)

    checks = []
    for suite in (*clients, HELD_OUT):
        had = [other.name for other in others if suite in other.suites]
        if candidate.get(suite):
            continue
        if suite in candidate or had:
            before = f", and the {had[0]} answered some" if had else ""
            checks.append(check(suite, False, f"the candidate was asked no question{before}; fill data/eval/{suite}.jsonl"))
        elif suite != HELD_OUT:
            checks.append(check(suite, True, "no evaluation questions, so it is not judged"))
    gone = {client for other in others for client in other.clients} - {*clients}
    return checks + [check(suite, True, "no client any more, so it is not judged") for suite in sorted(gone)]


def same_baseline(version: int, settings: Gate) -> Check:
    """The record that the baseline needs no comparison of its own, for it is the champion; its margin is no narrower."""
    text = f"the champion, version {version}, is the baseline too: who is within the champion's margins is within the total one"
    return Check(BASELINE, True, 0.0, None, None, -settings.total_margin, text, f"against the {BASELINE}")


def _kl(kl: float, budget: float) -> Check:
    text = f"the policy is {kl:.2f} nats from the base; the budget is {budget:g}"
    return Check("kl", -math.inf < kl <= budget, kl, None, None, budget, text, OWN)  # not a number does not pass


def _calibrated(calibration: Mapping[str, tuple[float, float]], settings: Gate) -> list[Check]:
    checks, widest, largest = [], settings.calibration_deviation, settings.calibration_mean
    for client, (mean, deviation) in calibration.items():
        what = f"{client}'s reward model scores held-out pairs with"
        text = f"{what} mean {mean:.2f}; it must be within ±{largest:g}"
        checks.append(Check(f"calibration.{client}.mean", abs(mean) <= largest, mean, None, None, largest, text, OWN))
        text = f"{what} deviation {deviation:.2f}; it must be in [{1 / widest:.2f}, {widest:g}]"
        passed = 1 / widest <= deviation <= widest
        checks.append(Check(f"calibration.{client}.deviation", passed, deviation, None, None, widest, text, OWN))
    return checks


# --- as served --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What registered models did in a fresh process: the policy's ``answers`` and each prompt's ``weights`` by client, the
    ``scores`` of each client's reward model; ``trouble`` and, by client, ``troubles`` say why there are none."""

    answers: Sequence[str] = ()
    weights: Sequence[Mapping[str, float]] = ()
    trouble: str = ""
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    troubles: Mapping[str, str] = field(default_factory=dict)


def served(trial: Trial, expected: Sequence[str], clients: Sequence[str]) -> list[Check]:
    """Whether the candidate answers as ``expected``, with weights that are shares of ``clients``, and its rewards score."""
    return [*_served_policy(trial, expected, clients), *(_served_reward(trial, client) for client in clients)]


def _served_policy(trial: Trial, expected: Sequence[str], clients: Sequence[str]) -> list[Check]:
    if trial.trouble or not expected or not len(trial.answers) == len(trial.weights) == len(expected):
        why = trial.trouble or f"it gave {len(trial.answers)} answers to {len(expected)} questions"
        text = f"the registered policy could not be tried in a fresh process: {why}"
        return [Check("served.policy", False, math.nan, None, None, AGREEMENT, text, SERVED)]
    equal = sum(given == wanted for given, wanted in zip(trial.answers, expected, strict=True))
    text = (
        f"in a fresh process the registered policy gives {equal} of {len(expected)} answers as it was evaluated; "
        f"{AGREEMENT:.0%} must be equal, for another batch may turn a near tie round"
    )
    share = equal / len(expected)
    far = max(_distance(weights, clients) for weights in trial.weights)
    said = f"a prompt's weights are up to {far:.2g} from shares of the clients that add up to 1; at most {SUM:g} is rounding"
    return [
        Check("served.policy", share >= AGREEMENT, share, None, None, AGREEMENT, text, SERVED),
        Check("served.weights", far <= SUM, far, None, None, SUM, said, SERVED),
    ]


def _distance(weights: Mapping[str, float], clients: Sequence[str]) -> float:
    """How far weights are from shares of the clients; infinite where one is missing, negative or not a number."""
    values = [weights.get(client, math.nan) for client in clients]
    if weights.keys() != set(clients) or not all(math.isfinite(value) and value >= 0 for value in values):
        return math.inf
    return abs(sum(values) - 1)


def _served_reward(trial: Trial, client: str) -> Check:
    scores = trial.scores.get(client, ())
    finite = sum(math.isfinite(score) for score in scores)
    text = f"{client}'s registered reward model, in a fresh process, scores {finite} answers of a pair with a number"
    if client in trial.troubles:
        text = f"{client}'s registered reward model could not be tried in a fresh process: {trial.troubles[client]}"
    return Check(f"served.reward.{client}", finite == len(scores) == 2, float(finite), None, None, 2.0, text, SERVED)
