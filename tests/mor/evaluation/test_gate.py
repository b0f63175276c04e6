"""The gate: what passes, what does not, and what it says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from mor.config import Gate
from mor.evaluation.gate import Check, Other, Trial, Verdict, judge, same_baseline, served
from mor.evaluation.metrics import Judged

SETTINGS = Gate(
    margin=0.05, held_out_margin=0.02, total_margin=0.1, accuracy_margin=0.03, kl_budget=2.0, calibration_mean=1.5,
    calibration_deviation=3.0, trial_seconds=60,
)  # fmt: skip


def replies(preferred: list[bool], right: list[bool] | None = None) -> list[Judged]:
    return [
        Judged(id=str(i), image="x.png", prompt="?", answer="a", category="c", text="a", preferred=hit, right=correct)
        for i, (hit, correct) in enumerate(zip(preferred, right or [True] * len(preferred), strict=True))
    ]


def gate(candidate: dict[str, list[Judged]], *others: Other, **changes: Any) -> Verdict:
    given: dict[str, Any] = {"clients": ["documents"], "kl": 1.0, "calibration": {"documents": (0.0, 1.0)}} | changes
    return judge(candidate, others, settings=SETTINGS, resamples=500, confidence=0.95, rng=np.random.default_rng(0), **given)


def verdict(before: list[bool], after: list[bool], suite: str = "documents", **changes: Any) -> Verdict:
    return gate({suite: replies(after)}, Other("champion", {suite: replies(before)}), **changes)


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
        ({"kl": float("-inf")}, "-inf nats"),
        ({"calibration": {"documents": (float("nan"), 1.0)}}, "mean nan"),
        ({"calibration": {"documents": (0.0, float("nan"))}}, "deviation nan"),
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


def named(found: Verdict) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def nights(loss: float, count: int) -> list[list[Judged]]:
    """Replies of a first policy and of those of ``count`` nights, each with ``loss`` of 400 preferred answers less."""
    return [replies([i >= round(loss * 400 * night) for i in range(400)]) for night in range(count + 1)]


def test_many_small_losses_add_up_against_the_baseline() -> None:
    series = nights(0.02, 6)  # every night within the margin of 0.05, to the lower end of its interval
    endings = []
    for before, after in pairwise(series):
        others = [Other("champion", {"documents": before}), Other("baseline", {"documents": series[0]})]
        endings.append(gate({"documents": after}, *others))
    assert all(named(ending)["preference.documents"].passed for ending in endings)
    # lower ends against the first: night 3 -0.06 - 0.023, night 4 -0.08 - 0.027 beyond -0.10
    assert [ending.passed for ending in endings] == [True, True, True, False, False, False]
    (reason,) = endings[3].reasons
    assert "changed by -0.080" in reason
    assert "from the baseline's; the lower end must be above -0.100" in reason


def test_the_total_margin_holds_for_the_held_out_suite_too() -> None:
    first, *_, last = nights(0.02, 4)
    others = [Other("champion", {"held_out": last}), Other("baseline", {"held_out": first})]
    found = gate({"held_out": last}, *others)
    assert [name for name, check in named(found).items() if not check.passed] == ["preference.held_out.baseline"]


@pytest.mark.parametrize("suite", ["documents", "held_out"])
@pytest.mark.parametrize("other", ["champion", "baseline"])
def test_right_answers_are_not_given_up_for_preferred_ones(other: str, suite: str) -> None:
    fewer = replies([True] * 400, [i >= 20 for i in range(400)])  # 20 of 400: -0.05
    found = gate({suite: fewer}, Other(other, {suite: replies([True] * 400)}))
    assert [check.value for check in found.checks if not check.passed] == pytest.approx([-0.05])
    assert found.reasons[0].startswith(f"{suite}: accuracy changed by -0.050 (")
    slightly = replies([True] * 400, [i >= 2 for i in range(400)])  # -0.005, lower end -0.0125
    assert gate({suite: slightly}, Other(other, {suite: replies([True] * 400)})).passed


def test_checks_of_the_champion_and_of_the_baseline_have_names_of_their_own() -> None:
    same = {"documents": replies(HALF), "held_out": replies(HALF)}
    names = [check.name for check in gate(same, Other("champion", same), Other("baseline", same)).checks]
    assert names == [
        "preference.documents", "accuracy.documents", "preference.held_out", "accuracy.held_out",
        "preference.documents.baseline", "accuracy.documents.baseline",
        "preference.held_out.baseline", "accuracy.held_out.baseline",
        "kl", "calibration.documents.mean", "calibration.documents.deviation",
    ]  # fmt: skip
    assert same_baseline(3, SETTINGS).passed


def test_a_suite_without_questions_does_not_pass() -> None:
    found = gate({"documents": [], "held_out": replies(HALF)}, Other("champion", {"held_out": replies(HALF)}))
    assert not found.passed
    assert found.reasons == ["documents: the candidate was asked no question; fill data/eval/documents.jsonl"]


@pytest.mark.parametrize("suite", ["documents", "held_out"])
def test_questions_that_the_champion_answered_must_not_be_gone(suite: str) -> None:
    kept = "held_out" if suite == "documents" else "documents"
    before = Other("champion", {kept: replies(HALF)}, suites=["documents", "held_out"], clients=["documents"])
    found = gate({kept: replies(HALF)}, before)
    assert [check.name for check in found.checks if not check.passed] == [f"questions.{suite}"]
    assert "and the champion answered some" in found.reasons[0]


def test_a_client_that_left_is_said_to_be_not_judged() -> None:
    before = Other("champion", {"documents": replies(HALF)}, suites=["documents", "gone"], clients=["documents", "gone"])
    found = gate({"documents": replies(HALF), "gone": replies([False] * 400)}, before)
    assert found.passed
    assert named(found)["questions.gone"].text == "gone: no client any more, so it is not judged"


def test_a_new_client_is_compared_with_the_base_and_only_once() -> None:
    answers = {"documents": replies(HALF), "new": replies(HALF)}
    others = [Other(name, answers, clients=["documents"], new=["new"]) for name in ("champion", "baseline")]
    found = gate(answers, *others, clients=["documents", "new"])
    assert "from the base's, for new is new since the champion" in named(found)["preference.new"].text
    assert "preference.new.baseline" not in named(found)
    known_to_the_champion = [Other("champion", answers, clients=["documents", "new"]), others[1]]
    found = gate(answers, *known_to_the_champion, clients=["documents", "new"])
    assert "from the champion's" in named(found)["preference.new"].text
    assert "new since the baseline" in named(found)["preference.new.baseline"].text


WEIGHTS = {"documents": 0.25, "scenes": 0.75}
GOOD = {"answers": ["a"] * 20, "weights": [WEIGHTS] * 20, "scores": {"documents": [0.5, -1.0], "scenes": [0.0, 0.0]}}
NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "failed", "text"),
    [
        ({}, [], ""),
        ({"answers": ["b"] * 2 + ["a"] * 18}, [], ""),  # another batch may turn a near tie round: 0.9 is enough
        ({"answers": ["b"] * 3 + ["a"] * 17}, ["served.policy"], "17 of 20 answers"),
        ({"answers": ["a"] * 19}, ["served.policy"], "19 answers to 20 questions"),
        ({"answers": [], "weights": [], "trouble": "why"}, ["served.policy"], "tried in a fresh process: why"),
        ({"weights": [WEIGHTS] * 19 + [{"documents": NAN, "scenes": 1.0}]}, ["served.weights"], "inf from shares"),
        ({"weights": [{"documents": -0.5, "scenes": 1.5}] * 20}, ["served.weights"], "inf from shares"),
        ({"weights": [{"documents": 0.5, "scenes": 0.6}] * 20}, ["served.weights"], "up to 0.1 from shares"),
        ({"weights": [{"documents": 1.0}] * 20}, ["served.weights"], "inf from shares"),
        ({"scores": {"documents": [0.5, NAN], "scenes": [0.0, 0.0]}}, ["served.reward.documents"], "scores 1 answers"),
        ({"scores": {"scenes": [0.0, 0.0]}, "troubles": {"documents": "no"}}, ["served.reward.documents"], "tried in a fresh"),
    ],
)
def test_a_served_candidate_answers_as_it_was_evaluated(changes: dict[str, Any], failed: list[str], text: str) -> None:
    found = served(Trial(**(GOOD | changes)), ["a"] * 20, ["documents", "scenes"])
    assert [check.name for check in found if not check.passed] == failed
    assert all(text in check.text for check in found if not check.passed)


def test_a_total_margin_below_a_nights_margin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"total_margin 0.1 must be at least margin 0.2"):
        Gate(**(SETTINGS.model_dump() | {"margin": 0.2}))
