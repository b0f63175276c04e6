"""A candidate as it is served: tried in a fresh process, with nothing of a client's own."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from mor.config import Params
from mor.evaluation.gate import SERVED
from mor.vlm.lora import load_policy
from tasks.project import paths
from tasks.tracking import judging, registry, trial
from tests.tasks.tracking.small_project import PASSED, evaluate, failed, folder, project, register  # noqa: F401


def own_answer(params: Params) -> str:
    """What the trained policy says to the one question that there is."""
    with Image.open(paths.EVAL / "x.png") as picture:
        policy = load_policy(params.base, paths.POLICY)
        return policy.answer(["?"], [picture.convert("RGB")], params.grpo.max_completion_tokens)[0]


def test_a_candidate_is_tried_in_a_fresh_process_far_from_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on PYTHONPATH there would end it: only what was packed may be used."""
    elsewhere = Path.cwd() / "elsewhere"
    (elsewhere / "mor").mkdir(parents=True, exist_ok=True)
    (elsewhere / "mor" / "__init__.py").write_text("raise SystemExit('not the packed code')")
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    monkeypatch.setenv("MOR_TOKEN_DOCUMENTS", "secret")
    candidate, params = register("20", 20)
    evaluate(0.8, text=own_answer(params))
    verdict = trial.try_candidate(candidate, PASSED, params.gate)
    assert verdict.reasons == []
    assert [check.name for check in verdict.checks] == ["served.policy", "served.weights", "served.reward.documents"]
    assert verdict.checks[0].value == 1.0
    assert {check.group for check in verdict.checks} == {SERVED}
    registry.promote(candidate, verdict, params.gate)
    monkeypatch.setattr(trial, "run_trial", None)
    assert trial.try_candidate(candidate, judging.judge_candidate(candidate, params), params.gate) == verdict  # not tried twice


def test_a_candidate_that_cannot_be_served_is_refused_with_a_readable_reason() -> None:
    """Its adapter is damaged in the registry, and it never answers "a", as its evaluation says."""
    candidate, params = register("21", 21)
    source = str(MlflowClient().get_model_version("mor-policy", str(candidate.policy)).source)
    (adapter,) = Path(source.removeprefix("file://")).rglob("adapter_model.safetensors")
    whole = adapter.read_bytes()
    try:
        adapter.write_bytes(whole[:1000])
        verdict = trial.try_candidate(candidate, PASSED, params.gate)
    finally:
        adapter.write_bytes(whole)
    assert failed(verdict) == ["served.policy"]
    (reason,) = verdict.reasons
    assert "could not be tried in a fresh process: loading ended in SafetensorError" in reason
    assert ".nights/trial.log says more" in reason
    assert "Traceback" not in reason
    assert "Traceback" in trial.LOG.read_text()
    champion = registry.champion()
    registry.promote(candidate, verdict, params.gate)
    assert registry.champion() == champion
    hasty = params.model_copy(update={"gate": params.gate.model_copy(update={"trial_seconds": 0.05})})
    verdict = trial.try_candidate(candidate, PASSED, hasty.gate)
    assert failed(verdict) == ["served.policy", "served.reward.documents"]
    assert all("took longer than 0.05 s (gate.trial_seconds)" in reason for reason in verdict.reasons)


def test_nothing_of_a_clients_own_travels_in_the_registry() -> None:
    """The example input is blank, and the tags hold neither prompts nor answers."""
    secret = "a private word of the client"
    evaluate(0.1, answer=secret)
    candidate, params = register("22", 22)
    version = MlflowClient().get_model_version("mor-policy", str(candidate.policy))
    (example,) = Path(str(version.source).removeprefix("file://")).rglob("input_example.json")
    (image, prompt) = json.loads(example.read_text())["data"][0]
    assert prompt == "What is shown?"
    with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
        assert picture.convert("RGB").getcolors() == [(32 * 32, (255, 255, 255))]
        assert picture.info == {}
    hasty = params.model_copy(update={"gate": params.gate.model_copy(update={"trial_seconds": 0.05})})
    verdict = trial.try_candidate(candidate, judging.judge_candidate(candidate, params), hasty.gate)
    assert not verdict.passed
    registry.promote(candidate, verdict, params.gate)
    tags = MlflowClient().get_model_version("mor-policy", str(candidate.policy)).tags
    assert secret not in json.dumps(tags)
    assert len(tags["mor.reasons"]) > 100
