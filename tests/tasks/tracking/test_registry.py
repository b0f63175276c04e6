"""The registry on a real MLflow store: what is registered, judged, promoted, rolled back, loaded elsewhere."""

from __future__ import annotations

import base64
import getpass
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from peft import get_peft_model
from PIL import Image

from mor.config import Params, UserError, load_params
from mor.data.schema import Question, write_rows
from mor.evaluation.gate import SERVED, Check, Verdict
from mor.rewards.calibration import Calibration
from mor.rewards.implicit import lora_config
from mor.routing.router import Router
from mor.vlm.load import load_model
from mor.vlm.lora import load_policy
from tasks.project import paths
from tasks.tracking import registry, trial
from tasks.tracking import runs as tracking

ROOT = Path(__file__).parents[3]
PASSED = Verdict([])
REFUSED = Verdict([Check("kl", False, 3.0, None, None, 2.0, "the policy is 3.00 nats from the base; the budget is 2")])


def asked(answer: str = "a", n: int = 50) -> list[Question]:
    return [Question(id=str(i), image="x.png", prompt="?", answer=answer, category="c") for i in range(n)]


def replies(questions: list[Question], preferred: float, text: str = "a") -> list[dict[str, Any]]:
    return [
        row.model_dump() | {"text": text, "preferred": i < preferred * len(questions), "right": True}
        for i, row in enumerate(questions)
    ]


def evaluate(aligned: float, answer: str = "a", colour: str = "white", text: str = "a", clients: tuple[str, ...] = ()) -> None:
    """What the stages up to evaluate would leave behind; ``clients`` are further ones."""
    paths.EVAL.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), colour).save(paths.EVAL / "x.png")
    questions = asked(answer)
    paths.VALIDATED_EVAL.mkdir(parents=True, exist_ok=True)
    suites = ("documents", *clients)
    for suite in suites:
        write_rows(paths.validated_suite(suite), questions)
    described = {
        "answers": {
            model: {suite: replies(questions, share, text) for suite in suites}
            for model, share in (("base", 0.3), ("aligned", aligned))
        },
        "pairs": {}, "routing": {}, "clients": ["documents"], "wire": {}, "seconds": {}, "settings": {},
    }  # fmt: skip
    paths.EVALUATION.parent.mkdir(exist_ok=True)
    paths.EVALUATION.write_text(json.dumps(described))
    calibration = {"mean": 0.1, "deviation": 1.0}
    rewards = {suite: {"pair_accuracy": {suite: {"all": 1.0}}, "calibration": calibration} for suite in suites}
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


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def test_the_first_champion_is_the_baseline_until_a_person_pins_another(monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    client.delete_registered_model_alias("mor-policy", "baseline")  # as of a registry that is older than baselines
    first, params = register("1", 1)
    registry.promote(first, PASSED, params)
    assert registry.baseline() == first
    tags = client.get_model_version("mor-policy", str(first.policy)).tags
    assert tags["mor.pinned_by"].startswith("automatically")
    evaluate(0.78)
    second, _ = register("2", 2)
    registry.promote(second, PASSED, params)
    assert registry.champion() == second
    assert registry.baseline() == first  # no night moves it
    assert registry.pin() == second == registry.baseline()
    tags = client.get_model_version("mor-policy", str(second.policy)).tags
    assert tags["mor.pinned_by"] == getpass.getuser()
    assert tags["mor.pinned_at"][:2] == "20"
    registry.rollback()
    assert (registry.champion(), registry.baseline()) == (first, second)  # nor does a rollback
    assert registry.pin("night/1") == first == registry.pin(str(first.policy))


def test_only_a_version_that_passed_can_be_pinned() -> None:
    first, params = register("1", 1)
    registry.promote(first, PASSED, params)
    refused, _ = register("refused", 6)
    registry.promote(refused, REFUSED, params)
    for wanted in (str(refused.policy), "refused", "999", "2031-01-01"):
        with pytest.raises(UserError, match=rf"'{wanted}' is no version of mor-policy that passed.*{first.policy} \(night 1\)"):
            registry.pin(wanted)


def test_nights_that_each_lose_a_little_are_stopped_by_the_baseline() -> None:
    """Each is level with the champion; the champion is 0.3 below the baseline."""
    first, params = register("1", 1)
    registry.promote(first, PASSED, params)
    registry.pin()
    same = registry.judge_candidate(register("7", 7)[0], params)
    assert same.passed
    assert same.checks[-1].name == "baseline"  # recorded, not compared twice
    assert not [check for check in same.checks if check.name.endswith(".baseline")]
    evaluate(0.5)
    second, _ = register("8", 8)
    registry.promote(second, PASSED, params)
    third, _ = register("9", 9)
    verdict = registry.judge_candidate(third, params)
    assert failed(verdict) == ["preference.documents.baseline"]
    registry.promote(third, verdict, params)
    assert registry.champion() == second
    assert registry.is_judged(params)
    registry.pin()  # a person approves of the champion as it is
    assert not registry.is_judged(params)
    assert registry.judge_candidate(third, params).passed


def test_questions_that_were_taken_away_stop_a_candidate() -> None:
    evaluate(0.8, clients=("held_out",))
    first, params = register("10", 10)
    registry.promote(first, PASSED, params)
    registry.pin()
    paths.validated_suite("held_out").unlink()
    evaluate(0.8)
    assert failed(registry.judge_candidate(register("11", 11)[0], params)) == ["questions.held_out"]


def test_a_new_client_is_compared_with_the_base() -> None:
    first, params = register("1", 1)
    registry.promote(first, PASSED, params)
    registry.pin()
    evaluate(0.8, clients=("scenes",))
    wider = params.model_copy(update={"clients": params.clients | {"scenes": params.clients["documents"]}})
    verdict = registry.judge_candidate(registry.Candidate("12", 0, {"documents": 1, "scenes": 1}), wider)
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
    registry.promote(first, PASSED, params)
    registry.pin()
    second, _ = register("2", 2)
    paths.METRICS.write_text(json.dumps({"reward_models": described}))
    paths.stage_metrics("align").unlink()
    assert failed(registry.judge_candidate(second, params)) == ["kl", *names]


def test_an_evaluation_without_the_candidates_answers_is_said() -> None:
    second, params = register("2", 2)
    whole = json.loads(paths.EVALUATION.read_text())
    del whole["answers"]["aligned"]
    paths.EVALUATION.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="no answers of aligned"):
        registry.judge_candidate(second, params)


def own_answer(params: Params) -> str:
    """What the trained policy says to the one question that there is."""
    with Image.open(paths.EVAL / "x.png") as picture:
        policy = load_policy(params.base, paths.POLICY)
        return policy.answer(["?"], [picture.convert("RGB")], params.grpo.max_completion_tokens)[0]


def test_a_candidate_is_tried_in_a_fresh_process_far_from_the_project(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    """What is on PYTHONPATH there would end it: only what was packed may be used."""
    (project / "elsewhere" / "mor").mkdir(parents=True, exist_ok=True)
    (project / "elsewhere" / "mor" / "__init__.py").write_text("raise SystemExit('not the packed code')")
    monkeypatch.setenv("PYTHONPATH", str(project / "elsewhere"))
    monkeypatch.setenv("MOR_TOKEN_DOCUMENTS", "secret")
    candidate, params = register("20", 20)
    evaluate(0.8, text=own_answer(params))
    verdict = trial.try_candidate(candidate, PASSED, params)
    assert verdict.reasons == []
    assert [check.name for check in verdict.checks] == ["served.policy", "served.weights", "served.reward.documents"]
    assert verdict.checks[0].value == 1.0
    assert {check.group for check in verdict.checks} == {SERVED}
    registry.promote(candidate, verdict, params)
    monkeypatch.setattr(trial, "run_trial", None)
    assert trial.try_candidate(candidate, registry.judge_candidate(candidate, params), params) == verdict  # not tried twice


def test_a_candidate_that_cannot_be_served_is_refused_with_a_readable_reason() -> None:
    """Its adapter is damaged in the registry, and it never answers "a", as its evaluation says."""
    candidate, params = register("21", 21)
    source = str(MlflowClient().get_model_version("mor-policy", str(candidate.policy)).source)
    (adapter,) = Path(source.removeprefix("file://")).rglob("adapter_model.safetensors")
    whole = adapter.read_bytes()
    try:
        adapter.write_bytes(whole[:1000])
        verdict = trial.try_candidate(candidate, PASSED, params)
    finally:
        adapter.write_bytes(whole)
    assert failed(verdict) == ["served.policy"]
    (reason,) = verdict.reasons
    assert "could not be tried in a fresh process: loading ended in SafetensorError" in reason
    assert ".nights/trial.log says more" in reason
    assert "Traceback" not in reason
    assert "Traceback" in trial.LOG.read_text()
    champion = registry.champion()
    registry.promote(candidate, verdict, params)
    assert registry.champion() == champion
    hasty = params.model_copy(update={"gate": params.gate.model_copy(update={"trial_seconds": 0.05})})
    verdict = trial.try_candidate(candidate, PASSED, hasty)
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
    verdict = trial.try_candidate(candidate, registry.judge_candidate(candidate, params), hasty)
    assert not verdict.passed
    registry.promote(candidate, verdict, params)
    tags = MlflowClient().get_model_version("mor-policy", str(candidate.policy)).tags
    assert secret not in json.dumps(tags)
    assert len(tags["mor.reasons"]) > 100
