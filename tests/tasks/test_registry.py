"""The registry on a real MLflow store: what is registered, judged, promoted, rolled back, loaded elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from peft import get_peft_model
from PIL import Image

from mor.alignment.rounds import load_policy
from mor.config import Params, UserError, load_params
from mor.data.schema import Question, write_rows
from mor.evaluation.gate import Check, Verdict
from mor.rewards.calibration import Calibration
from mor.rewards.implicit import lora_config
from mor.routing.router import Router
from mor.vlm.load import load_model
from tasks import paths, registry, tracking

ROOT = Path(__file__).parents[2]
PASSED = Verdict([])
REFUSED = Verdict([Check("kl", False, 3.0, None, None, 2.0, "the policy is 3.00 nats from the base; the budget is 2")])


def asked(answer: str = "a", n: int = 50) -> list[Question]:
    return [Question(id=str(i), image="x.png", prompt="?", answer=answer, category="c") for i in range(n)]


def replies(questions: list[Question], preferred: float) -> list[dict[str, Any]]:
    return [
        row.model_dump() | {"text": "a", "preferred": i < preferred * len(questions), "right": True}
        for i, row in enumerate(questions)
    ]


def evaluate(aligned: float, answer: str = "a", colour: str = "white") -> None:
    """What the stages up to evaluate would leave behind."""
    paths.EVAL.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), colour).save(paths.EVAL / "x.png")
    questions = asked(answer)
    paths.VALIDATED_EVAL.mkdir(parents=True, exist_ok=True)
    write_rows(paths.validated_suite("documents"), questions)
    described = {
        "answers": {
            model: {"documents": replies(questions, share)} for model, share in (("base", 0.3), ("aligned", aligned))
        },
        "pairs": {}, "routing": {}, "clients": ["documents"], "wire": {}, "seconds": {}, "settings": {},
    }  # fmt: skip
    paths.EVALUATION.parent.mkdir(exist_ok=True)
    paths.EVALUATION.write_text(json.dumps(described))
    rewards = {"documents": {"pair_accuracy": {"documents": {"all": 1.0}}, "calibration": {"mean": 0.1, "deviation": 1.0}}}
    paths.METRICS.write_text(json.dumps({"reward_models": rewards}))
    paths.STAGES.mkdir(exist_ok=True)
    paths.stage_metrics("align").write_text(json.dumps({"align.kl": 0.4}))


def train(seed: int, scale: float = 1.0) -> None:
    """A policy and a reward model as their stages would leave them, untrained; ``scale`` is the latter's calibration."""
    import torch

    torch.manual_seed(seed)
    params = load_params()
    shutil.rmtree(paths.POLICY, ignore_errors=True)
    policy = get_peft_model(load_model(params.base), lora_config(params.grpo.lora))
    policy.save_pretrained(str(paths.POLICY))
    (paths.POLICY / "mark").write_text(str(seed))
    Router("uniform", ["documents"]).save(paths.round_folder(params.grpo.rounds))
    folder = paths.reward_folder("documents")
    if not folder.exists():
        shutil.copytree(ROOT / "models/zoo/idefics3", folder / "model")
        described = {"kind": "implicit", "backbone": params.clients["documents"].backbone, "floor": 1e9}
        (folder / "reward.json").write_text(json.dumps(described))
    Calibration(0.0, scale).save(folder / "calibration.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One project for all tests here, with a registered candidate: making the store and the models takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    tracking.mlflow_client.cache_clear()
    tracking._experiment.cache_clear()
    if not (folder / "models").exists():
        import yaml

        (folder / "models").mkdir()
        (folder / "models/zoo").symlink_to(ROOT / "models/zoo")
        values = yaml.safe_load((ROOT / "params.yaml").read_text())
        del values["clients"]["medical"], values["clients"]["scenes"]
        (folder / "params.yaml").write_text(yaml.safe_dump(values))
        train(1)
    evaluate(0.8)
    yield folder
    tracking.mlflow_client.cache_clear()
    tracking._experiment.cache_clear()


def register(night: str, seed: int, scale: float = 1.0) -> tuple[registry.Candidate, Params]:
    train(seed, scale)
    params = load_params()
    execution = f"night {night}"
    run = tracking.find_parent(execution) or tracking.open_parent(execution, execution, {"mor.night": night})
    return registry.register(night, run, params), params


def alias(name: str, which: str) -> int:
    return int(MlflowClient().get_registered_model(name).aliases[which])


def test_nothing_serves_before_a_promotion_and_that_is_said() -> None:
    assert registry.champion() is None
    with pytest.raises(UserError, match="no champion yet"):
        registry.rollback()
    with pytest.raises(UserError, match="no champion yet"):
        registry.ask(paths.EVAL / "x.png", "?")
    with pytest.raises(UserError, match=r"nope\.png: no such file"):
        registry.ask(Path("nope.png"), "?")


def test_first_candidate_is_compared_with_the_base_and_later_ones_with_the_champion() -> None:
    first, params = register("1", 1)
    assert first == registry.candidate()
    verdict = registry.judge_candidate(first, params)
    assert verdict.passed
    assert verdict.checks[0].value == pytest.approx(0.5)  # 0.8 of the candidate less 0.3 of the base
    registry.promote(first, verdict, load_params())
    assert registry.champion() == first
    assert alias("mor-reward-documents", "champion") == first.rewards["documents"]
    evaluate(0.5)
    second, _ = register("2", 2)
    assert second.policy != first.policy
    assert second.rewards == first.rewards  # the same reward model is not registered twice
    verdict = registry.judge_candidate(second, params)
    assert not verdict.passed
    assert verdict.checks[0].value == pytest.approx(-0.3)
    registry.promote(second, verdict, load_params())
    assert registry.champion() == first
    assert registry.candidate() == second
    assert "changed by -0.300" in MlflowClient().get_model_version("mor-policy", str(second.policy)).tags["mor.reasons"]


def test_registering_the_same_again_makes_no_version() -> None:
    one, _ = register("1", 1)
    assert register("3", 1)[0] == one


def test_a_champion_answers_afresh_where_questions_or_their_pictures_have_changed() -> None:
    one, _ = register("1", 1)
    registry.promote(one, PASSED, load_params())
    two, params = register("2", 2)
    assert registry.judge_candidate(two, params).checks[0].value == 0.0  # both 0.8, the champion's as it was recorded
    evaluate(0.8, colour="black")
    assert registry.judge_candidate(two, params).checks[0].value == pytest.approx(0.8)  # it never answers "a"
    with Image.open(paths.EVAL / "x.png") as picture:
        text = load_policy(params.base, paths.POLICY).answer(["?"], [picture.convert("RGB")], params.grpo.max_completion_tokens)
    evaluate(0.8, answer=text[0], colour="black")
    assert registry.judge_candidate(two, params).checks[0].value == pytest.approx(-0.2)  # now it is always right


def test_a_reward_model_that_can_score_no_pair_does_not_pass() -> None:
    two, params = register("2", 2)
    paths.METRICS.write_text(json.dumps({"reward_models": {"documents": {"pair_accuracy": {"documents": {"all": 0.0}}}}}))
    reasons = registry.judge_candidate(two, params).reasons
    assert [reason.partition("pairs with ")[2][:8] for reason in reasons] == ["mean nan", "deviatio"]


class Killed(BaseException):
    """Nothing catches it."""


def test_a_promotion_that_was_killed_half_way_is_settled_and_can_be_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise Killed

    first, _ = register("1", 1)
    registry.promote(first, PASSED, load_params())
    evaluate(0.9)
    second, params = register("4", 4, scale=2.0)
    verdict = registry.judge_candidate(second, params)
    assert verdict.passed
    assert verdict.checks[0].value == pytest.approx(0.1)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "settle", die)
        with pytest.raises(Killed):
            registry.promote(second, verdict, load_params())
    assert registry.champion() == second
    assert alias("mor-reward-documents", "champion") == first.rewards["documents"] != second.rewards["documents"]
    registry.settle()
    assert alias("mor-reward-documents", "champion") == second.rewards["documents"]
    assert registry.judge_candidate(second, params) == verdict  # the night that goes on says what it would have said
    registry.promote(second, verdict, load_params())
    assert registry.rollback() == (second, first)
    assert registry.champion() == first
    assert alias("mor-reward-documents", "champion") == first.rewards["documents"]
    with pytest.raises(UserError, match="none before it"):
        registry.rollback()


def test_a_refused_candidate_is_judged_again_when_the_gate_has_changed() -> None:
    candidate, params = register("5", 5)
    assert not registry.is_judged(params)
    registry.promote(candidate, REFUSED, params)
    assert registry.is_judged(params)
    wider = params.model_copy(update={"gate": params.gate.model_copy(update={"margin": 0.9})})
    assert not registry.is_judged(wider)
    registry.promote(candidate, PASSED, params)
    assert registry.is_judged(wider)  # it serves


def test_a_client_that_left_has_no_champion() -> None:
    one, _ = register("1", 1)
    registry.promote(one, PASSED, load_params())
    client = MlflowClient()
    client.create_registered_model("mor-reward-gone")
    source = str(client.get_model_version("mor-reward-documents", str(one.rewards["documents"])).source)
    client.create_model_version("mor-reward-gone", source)
    client.set_registered_model_alias("mor-reward-gone", "champion", "1")
    registry.settle()
    assert "champion" not in client.get_registered_model("mor-reward-gone").aliases
    assert alias("mor-reward-documents", "champion") == one.rewards["documents"]


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "bomb", "folder"])
def test_what_is_no_picture_is_said(damage: str, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    Image.effect_noise((64, 64), 50).save(image)
    whole = image.read_bytes()
    bomb = b"BM" + (0).to_bytes(8, "little") + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    bomb += (60000).to_bytes(4, "little") * 2 + b"\x01\x00\x18\x00" + bytes(24)
    if damage == "folder":
        image = tmp_path
    else:
        image.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2], "bomb": bomb}[damage])
    with pytest.raises(UserError, match="cannot be read as a picture"):
        registry.encoded(image)


def test_registered_models_load_and_answer_in_another_folder_without_the_project(tmp_path: Path, project: Path) -> None:
    first, _ = register("1", 1)
    code = (
        "import mlflow, pandas, sys\n"
        f"policy = mlflow.pyfunc.load_model('models:/mor-policy/{first.policy}')\n"
        "found = policy.predict(policy.input_example)\n"
        "assert list(found.columns) == ['answer', 'weight.documents'], found.columns\n"
        "reward = mlflow.pyfunc.load_model('models:/mor-reward-documents/1')\n"
        "print(found['weight.documents'][0], float(reward.predict(reward.input_example)['score'][0]))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = f"sqlite:///{project / 'mlflow.db'}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    weight, score = done.stdout.split()
    assert float(weight) == 1.0
    assert abs(float(score)) < 1e-3  # an untrained reward model is its own reference: log pi - log ref = 0
