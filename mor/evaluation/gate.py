"""The gate between a candidate and the champion: a list of checks, each with its number, its bound and a sentence.

Answers to the same questions are compared in pairs (``mor.evaluation.statistics``). A client counts as no worse if the
*lower end* of the interval of its change lies above minus the margin (a non-inferiority test): what could as well be a
loss is not let through. Without a champion the candidate is compared with the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mor.config import Gate
from mor.evaluation.metrics import HELD_OUT, Reply
from mor.evaluation.statistics import Interval, bootstrap_difference


@dataclass(frozen=True)
class Check:
    """One condition; ``low`` and ``high`` are the interval of ``value`` where it has one."""

    name: str
    passed: bool
    value: float
    low: float | None
    high: float | None
    bound: float
    text: str


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


def judge(
    candidate: Mapping[str, Sequence[Reply]],
    other: Mapping[str, Sequence[Reply]],
    name: str,
    *,
    clients: Sequence[str],
    kl: float,
    calibration: Mapping[str, tuple[float, float]],
    settings: Gate,
    resamples: int,
    confidence: float,
    rng: np.random.Generator,
) -> Verdict:
    """Compare suite by suite with ``other``, called ``name`` in the texts; both have answered the same questions.

    ``kl`` is the policy's distance from the base in nats, ``calibration`` each client's mean and deviation of its reward
    model's scores on pairs that it was not calibrated on. Raises ``ValueError`` where the questions differ.
    """
    checks = []
    for suite, replies in candidate.items():
        if suite not in (*clients, HELD_OUT):
            continue
        before = other[suite]
        if [reply.id for reply in replies] != [reply.id for reply in before]:
            raise ValueError(f"{suite}: candidate and {name} must answer the same questions in the same order")
        change = bootstrap_difference(
            [reply.preferred for reply in before], [reply.preferred for reply in replies],
            resamples=resamples, confidence=confidence, rng=rng,
        )  # fmt: skip
        margin = settings.held_out_margin if suite == HELD_OUT else settings.margin
        checks.append(_no_worse(suite, change, margin, name))
    return Verdict([*(checks or [_nothing_asked()]), _kl(kl, settings.kl_budget), *_calibrated(calibration, settings)])


def _no_worse(suite: str, change: Interval, margin: float, name: str) -> Check:
    text = (
        f"{suite}: preference satisfaction changed by {change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f}) "
        f"from the {name}'s; the lower end must be above {-margin:+.3f}"
    )
    return Check(f"preference.{suite}", change.low > -margin, change.value, change.low, change.high, -margin, text)


def _nothing_asked() -> Check:
    text = "no client has evaluation questions, so nothing shows that the candidate is no worse; add data/eval/<client>.jsonl"
    return Check("preference", False, float("nan"), None, None, 0.0, text)


def _kl(kl: float, budget: float) -> Check:
    text = f"the policy is {kl:.2f} nats from the base; the budget is {budget:g}"
    return Check("kl", kl <= budget, kl, None, None, budget, text)  # not a number does not pass


def _calibrated(calibration: Mapping[str, tuple[float, float]], settings: Gate) -> list[Check]:
    checks, widest, largest = [], settings.calibration_deviation, settings.calibration_mean
    for client, (mean, deviation) in calibration.items():
        what = f"{client}'s reward model scores held-out pairs with"
        text = f"{what} mean {mean:.2f}; it must be within ±{largest:g}"
        checks.append(Check(f"calibration.{client}.mean", abs(mean) <= largest, mean, None, None, largest, text))
        text = f"{what} deviation {deviation:.2f}; it must be in [{1 / widest:.2f}, {widest:g}]"
        passed = 1 / widest <= deviation <= widest
        checks.append(Check(f"calibration.{client}.deviation", passed, deviation, None, None, widest, text))
    return checks
