"""The gate: what passes, what does not, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mor.config import Gate
from mor.evaluation.gate import Verdict, judge
from mor.evaluation.metrics import Reply

SETTINGS = Gate(margin=0.05, held_out_margin=0.02, kl_budget=2.0, calibration_mean=1.5, calibration_deviation=3.0)


def replies(preferred: list[bool]) -> list[Reply]:
    return [
        Reply(id=str(i), image="x.png", prompt="?", answer="a", category="c", text="a", preferred=hit, right=hit)
        for i, hit in enumerate(preferred)
    ]


def verdict(before: list[bool], after: list[bool], suite: str = "documents", **changes: Any) -> Verdict:
    given: dict[str, Any] = {"kl": 1.0, "calibration": {"documents": (0.0, 1.0)}} | changes
    return judge(
        {suite: replies(after)}, {suite: replies(before)}, "champion", clients=["documents"], settings=SETTINGS,
        resamples=500, confidence=0.95, rng=np.random.default_rng(0), **given,
    )  # fmt: skip


HALF = [True, False] * 200


def test_the_champion_itself_passes() -> None:
    found = verdict(HALF, HALF)
    assert found.passed
    assert found.reasons == []
    assert found.checks[0].value == found.checks[0].low == 0.0


def test_a_loss_within_the_margin_passes_only_where_the_interval_says_so() -> None:
    # 4 of 400 lost: -0.01, interval about -0.02 to -0.0025, margin 0.05
    assert verdict(HALF, [False] * 8 + HALF[8:]).passed
    noisy = verdict(HALF[:60], [not hit for hit in HALF[:60]])  # half of all answers turn round: 0.0 +- 0.25
    assert noisy.checks[0].value == 0.0
    assert not noisy.passed


def test_a_lost_client_is_named_with_its_figures() -> None:
    found = verdict(HALF, [False] * 400)
    assert not found.passed
    (reason,) = found.reasons
    assert reason.startswith("documents: preference satisfaction changed by -0.500 (")
    assert "from the champion's; the lower end must be above -0.050" in reason


def test_the_held_out_suite_has_a_margin_of_its_own() -> None:
    lost = [False] * 24 + HALF[24:]  # 12 of 400: -0.03, interval about -0.047 to -0.015
    assert verdict(HALF, lost).passed
    assert not verdict(HALF, lost, "held_out").passed


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kl": 2.5}, "2.50 nats"),
        ({"kl": float("nan")}, "nan nats"),
        ({"calibration": {"documents": (-1.6, 1.0)}}, "mean -1.60"),
        ({"calibration": {"documents": (0.0, 0.3)}}, "deviation 0.30"),
        ({"calibration": {"documents": (0.0, 3.1)}}, "deviation 3.10"),
    ],
)
def test_budget_and_calibration_are_bounds(changes: dict[str, Any], reason: str) -> None:
    found = verdict(HALF, HALF, **changes)
    assert not found.passed
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same questions"):
        verdict(HALF, HALF[:-1])


def test_a_candidate_that_was_asked_nothing_does_not_pass() -> None:
    found = verdict(HALF, HALF, suite="a suite of no client")
    assert not found.passed
    assert "no client has evaluation questions" in found.reasons[0]
