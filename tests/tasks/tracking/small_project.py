"""A project with one client, untrained models and a real MLflow store, for the tests of what is registered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from peft import get_peft_model
from PIL import Image

from mor.config import Params, load_params
from mor.data.schema import Question, write_rows
from mor.evaluation.gate import Verdict
from mor.rewards.calibration import Calibration
from mor.routing.router import Router
from mor.vlm.load import load_model
from mor.vlm.lora import lora_config
from tasks.project import paths
from tasks.tracking import packaging, registry, store
from tasks.tracking import runs as tracking

ROOT = Path(__file__).parents[3]
PASSED = Verdict([])


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
    store.mlflow_client.cache_clear()
    store.experiment.cache_clear()
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
    store.mlflow_client.cache_clear()
    store.experiment.cache_clear()


def register(night: str, seed: int, scale: float = 1.0) -> tuple[registry.Candidate, Params]:
    train(seed, scale)
    params = load_params()
    execution = f"night {night}"
    run = tracking.find_parent(execution) or tracking.open_parent(execution, params, execution, {"mor.night": night})
    return packaging.register(night, run, params), params


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def alias(name: str, which: str) -> int:
    return int(MlflowClient().get_registered_model(name).aliases[which])
