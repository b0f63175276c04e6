"""Models as the registry holds them: packed with their code and settings, so that each loads by itself.

A version is known by the digest of its files and settings: the same model is not registered twice.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from mor.config import Params
from mor.data.pictures import png_bytes
from mor.files import digest
from tasks.project import paths
from tasks.tracking.registry import CANDIDATE, EVALUATION, POLICY, Candidate, candidate_of, reward_name, versions_of
from tasks.tracking.store import mlflow_client, quiet_mlflow

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

SERVING = Path(__file__).parent / "serving"  # what runs where a model is loaded
MOR = Path(__file__).parents[2] / "mor"
NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "pillow", "numpy", "pandas",
          "pydantic", "pyyaml", "msgspec", "httpx", "scipy", "tenacity")  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A model to register: its code, its ``folders`` and settings, and what it takes and gives."""

    name: str
    code: Path
    folders: Mapping[str, Path]
    settings: Mapping[str, Any]
    signature: ModelSignature
    example: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells it from other versions."""
        folders = sorted((name, digest(folder)) for name, folder in self.folders.items())
        described = json.dumps([folders, dict(self.settings), dict(self.tags)], sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:16]


def register(night: str, run_id: str, params: Params) -> Candidate:
    """Register the pipeline's models, those that are not registered yet, and point ``candidate`` at them.

    Their files become artifacts of the MLflow run ``run_id``. Registering the same again changes nothing.
    """
    rewards = {client: _registered(_reward(client, params), night, run_id) for client in params.clients}
    policy = _registered(_policy(rewards, params), night, run_id)
    for name, version in {**{reward_name(client): v for client, v in rewards.items()}, POLICY: policy}.items():
        mlflow_client().set_registered_model_alias(name, CANDIDATE, str(version))
    return candidate_of(str(policy))


def _reward(client: str, params: Params) -> Package:
    backbone = params.clients[client].backbone
    folders = {"reward": paths.reward_folder(client)} | _local(backbone=backbone)
    given = _signature(("image", "prompt", "completion"), (), ("score",))
    example = _example() | {"completion": "7"}
    return Package(reward_name(client), SERVING / "reward.py", folders, {"backbone": backbone}, given, example)


def _policy(rewards: Mapping[str, int], params: Params) -> Package:
    folders = {"policy": paths.POLICY, "router": paths.round_folder(params.grpo.rounds)} | _local(base=params.base)
    settings = {"base": params.base, "max_tokens": params.grpo.max_completion_tokens}
    given = _signature(("image", "prompt"), ("answer",), [f"weight.{client}" for client in params.clients])
    tags = {"mor.rewards": json.dumps(rewards)}
    return Package(POLICY, SERVING / "policy.py", folders, settings, given, _example(), tags)


def _registered(package: Package, night: str, run_id: str) -> int:
    """The version of the registered model with these files and settings, made if there is none."""
    key = package.key
    if same := [version for version in versions_of(package.name) if version.tags.get("mor.digest") == key]:
        return max(int(version.version) for version in same)
    tags = {"mor.digest": key, "mor.night": night, **package.tags}
    with tempfile.TemporaryDirectory() as scratch, quiet_mlflow():
        model = Path(scratch) / package.name
        _save(package, model)
        if package.name == POLICY and paths.EVALUATION.exists():
            (model / EVALUATION).write_bytes(paths.EVALUATION.read_bytes())
            tags["mor.questions"] = digest(paths.EVAL)
        folder = f"models/{package.name}-{key}"
        mlflow_client().log_artifacts(run_id, str(model), folder)
        if not mlflow_client().search_registered_models(f"name = '{package.name}'"):
            mlflow_client().create_registered_model(package.name)
        source = f"{mlflow_client().get_run(run_id).info.artifact_uri}/{folder}"
        return int(mlflow_client().create_model_version(package.name, source, run_id, tags=tags).version)


def _save(package: Package, folder: Path) -> None:
    from mlflow import pyfunc

    pyfunc.save_model(
        folder,
        python_model=str(package.code),
        artifacts={key: str(path) for key, path in package.folders.items()},
        model_config=dict(package.settings),
        code_paths=[str(MOR)],
        signature=package.signature,
        input_example=pd.DataFrame([package.example]),
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", *NEEDED)],
    )


def _signature(given: Sequence[str], texts: Sequence[str], numbers: Sequence[str]) -> ModelSignature:
    """Columns of text that a model takes, and columns of text and of numbers that it gives."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    found = dict.fromkeys(texts, DataType.string) | dict.fromkeys(numbers, DataType.double)
    return ModelSignature(
        Schema([ColSpec(DataType.string, name) for name in given]),
        Schema([ColSpec(kind, name) for name, kind in found.items()]),
    )


def _local(**models: str) -> dict[str, Path]:
    """Those models that are folders and so must travel along; a hub id is loaded by its name."""
    return {key: Path(name) for key, name in models.items() if Path(name).is_dir()}


def _example() -> dict[str, str]:
    """A model's input, which travels in the registry: blank, since a question may be its client's own."""
    blank = png_bytes(Image.new("RGB", (32, 32), "white"))
    return {"image": base64.b64encode(blank).decode(), "prompt": "What is shown?"}
