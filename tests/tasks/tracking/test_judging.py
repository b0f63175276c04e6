"""Candidates judged by the gate, against what the registry holds of champion and baseline."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow import MlflowClient
from PIL import Image

from mor.config import load_params
from mor.errors import UserError
from mor.vlm.lora import load_policy
from tasks.project import paths
from tasks.tracking import judging, registry
from tests.tasks.tracking.small_project import PASSED, alias, evaluate, failed, folder, project, register  # noqa: F401


def test_first_candidate_is_compared_with_the_base_and_later_ones_with_the_champion() -> None:
    first, params = register("1", 1)
    assert first == registry.candidate()
    verdict = judging.judge_candidate(first, params)
    assert verdict.passed
    assert verdict.checks[0].value == pytest.approx(0.5)  # 0.8 of the candidate less 0.3 of the base
    registry.promote(first, verdict, load_params().gate)
    assert registry.champion() == first
    assert alias("mor-reward-documents", "champion") == first.rewards["documents"]
    evaluate(0.5)
    second, _ = register("2", 2)
    assert second.policy != first.policy
    assert second.rewards == first.rewards  # the same reward model is not registered twice
    verdict = judging.judge_candidate(second, params)
    assert not verdict.passed
    assert verdict.checks[0].value == pytest.approx(-0.3)
    registry.promote(second, verdict, load_params().gate)
    assert registry.champion() == first
    assert registry.candidate() == second
    assert "changed by -0.300" in MlflowClient().get_model_version("mor-policy", str(second.policy)).tags["mor.reasons"]


def test_a_champion_answers_afresh_where_questions_or_their_pictures_have_changed() -> None:
    one, _ = register("1", 1)
    registry.promote(one, PASSED, load_params().gate)
    two, params = register("2", 2)
    assert judging.judge_candidate(two, params).checks[0].value == 0.0  # both 0.8, the champion's as it was recorded
    evaluate(0.8, colour="black")
    assert judging.judge_candidate(two, params).checks[0].value == pytest.approx(0.8)  # it never answers "a"
    with Image.open(paths.EVAL / "x.png") as picture:
        text = load_policy(params.base, paths.POLICY).answer(["?"], [picture.convert("RGB")], params.grpo.max_completion_tokens)
    evaluate(0.8, answer=text[0], colour="black")
    assert judging.judge_candidate(two, params).checks[0].value == pytest.approx(-0.2)  # now it is always right


def test_a_reward_model_that_can_score_no_pair_does_not_pass() -> None:
    two, params = register("2", 2)
    paths.METRICS.write_text(json.dumps({"reward_models": {"documents": {"pair_accuracy": {"documents": {"all": 0.0}}}}}))
    reasons = judging.judge_candidate(two, params).reasons
    assert [reason.partition("pairs with ")[2][:8] for reason in reasons] == ["mean nan", "deviatio"]


def test_nights_that_each_lose_a_little_are_stopped_by_the_baseline() -> None:
    """Each is level with the champion; the champion is 0.3 below the baseline."""
    first, params = register("1", 1)
    registry.promote(first, PASSED, params.gate)
    registry.pin()
    same = judging.judge_candidate(register("7", 7)[0], params)
    assert same.passed
    assert same.checks[-1].name == "baseline"  # recorded, not compared twice
    assert not [check for check in same.checks if check.name.endswith(".baseline")]
    evaluate(0.5)
    second, _ = register("8", 8)
    registry.promote(second, PASSED, params.gate)
    third, _ = register("9", 9)
    verdict = judging.judge_candidate(third, params)
    assert failed(verdict) == ["preference.documents.baseline"]
    registry.promote(third, verdict, params.gate)
    assert registry.champion() == second
    assert registry.is_judged(params.gate)
    registry.pin()  # a person approves of the champion as it is
    assert not registry.is_judged(params.gate)
    assert judging.judge_candidate(third, params).passed


def test_questions_that_were_taken_away_stop_a_candidate() -> None:
    evaluate(0.8, clients=("held_out",))
    first, params = register("10", 10)
    registry.promote(first, PASSED, params.gate)
    registry.pin()
    paths.validated_suite("held_out").unlink()
    evaluate(0.8)
    assert failed(judging.judge_candidate(register("11", 11)[0], params)) == ["questions.held_out"]


def test_a_new_client_is_compared_with_the_base() -> None:
    first, params = register("1", 1)
    registry.promote(first, PASSED, params.gate)
    registry.pin()
    evaluate(0.8, clients=("scenes",))
    wider = params.model_copy(update={"clients": params.clients | {"scenes": params.clients["documents"]}})
    verdict = judging.judge_candidate(registry.Candidate("12", 0, {"documents": 1, "scenes": 1}), wider)
    checks = {check.name: check for check in verdict.checks}
    assert checks["preference.scenes"].value == pytest.approx(0.5)  # 0.8 of the candidate less 0.3 of the base
    assert "new since the champion" in checks["preference.scenes"].text
    paths.validated_suite("scenes").unlink()


@pytest.mark.parametrize(
    ("described", "names"),
    [
        ({}, ["calibration.documents.mean", "calibration.documents.deviation"]),
        ({"documents": {"pair_accuracy": {"documents": {}}, "calibration": {"mean": None, "deviation": 1.0}}},
         ["calibration.documents.mean"]),
        ({"documents": {"pair_accuracy": {"documents": {}}, "calibration": {"mean": 0.0}}},
         ["calibration.documents.deviation"]),
        ({"documents": {"pair_accuracy": {"documents": {}}, "calibration": {"mean": "0", "deviation": True}}},
         ["calibration.documents.mean", "calibration.documents.deviation"]),
    ],
)  # fmt: skip
def test_missing_numbers_do_not_pass(described: dict[str, Any], names: list[str]) -> None:
    first, params = register("1", 1)
    registry.promote(first, PASSED, params.gate)
    registry.pin()
    second, _ = register("2", 2)
    paths.METRICS.write_text(json.dumps({"reward_models": described}))
    paths.stage_metrics("align").unlink()
    assert failed(judging.judge_candidate(second, params)) == ["kl", *names]


def test_an_evaluation_without_the_candidates_answers_is_said() -> None:
    second, params = register("2", 2)
    whole = json.loads(paths.EVALUATION.read_text())
    del whole["answers"]["aligned"]
    paths.EVALUATION.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="no answers of aligned"):
        judging.judge_candidate(second, params)
