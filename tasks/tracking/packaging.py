"""Models as the registry holds them: packed with their code and settings, so that each loads by itself.

A version is known by the digest of its files and settings: the same model is not registered twice.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from mor.config import GrpoSettings, Params
from mor.data.pictures import png_bytes
from mor.files import digest
from tasks.project import paths
from tasks.tracking.registry import CANDIDATE, EVALUATION, POLICY, Candidate, candidate_of, reward_name, versions_of
from tasks.tracking.store import mlflow_client, quiet_mlflow

SERVING = Path(__file__).parent / "serving"  # what runs where a model is loaded
MOR = Path(__file__).parents[2] / "mor"
NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "pillow", "numpy", "pandas",
          "pydantic", "pyyaml", "msgspec", "httpx", "scipy", "tenacity")  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A model to register: its code, folders and settings, an example of what it takes, and the types of what it gives."""

    name: str
    code: Path
    folders: Mapping[str, Path]
    settings: dict[str, Any]
    example: Mapping[str, str]
    gives: Mapping[str, str]
    tags: dict[str, str] = field(default_factory=dict)


def register(night: str, run_id: str, params: Params) -> Candidate:
    """Register the pipeline's models, those that are not registered yet, and point ``candidate`` at them.

    Their files become artifacts of the MLflow run ``run_id``. Registering the same again changes nothing.
    """
    rewards = {name: _registered(_reward(name, client.backbone), night, run_id) for name, client in params.clients.items()}
    policy = _registered(_policy(rewards, params.base, params.grpo), night, run_id)
    for name, version in {**{reward_name(client): v for client, v in rewards.items()}, POLICY: policy}.items():
        mlflow_client().set_registered_model_alias(name, CANDIDATE, str(version))
    return candidate_of(str(policy))


def _reward(client: str, backbone: str) -> Package:
    folders = {"reward": paths.reward_folder(client)} | _local(backbone=backbone)
    example = _example() | {"completion": "7"}
    return Package(reward_name(client), SERVING / "reward.py", folders, {"backbone": backbone}, example, {"score": "double"})


def _policy(rewards: Mapping[str, int], base: str, grpo: GrpoSettings) -> Package:
    folders = {"policy": paths.POLICY, "router": paths.round_folder(grpo.rounds)} | _local(base=base)
    settings = {"base": base, "max_tokens": grpo.max_completion_tokens}
    gives = {"answer": "string"} | {f"weight.{client}": "double" for client in rewards}
    tags = {"mor.rewards": json.dumps(rewards)}
    return Package(POLICY, SERVING / "policy.py", folders, settings, _example(), gives, tags)


def _registered(package: Package, night: str, run_id: str) -> int:
    """The version of the registered model with these files and settings, made if there is none."""
    folders = sorted((name, digest(folder)) for name, folder in package.folders.items())
    described = json.dumps([folders, package.settings, package.tags], sort_keys=True)
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
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
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    sides = dict.fromkeys(package.example, "string"), package.gives
    takes, gives = (Schema([ColSpec(kind, name) for name, kind in side.items()]) for side in sides)
    pyfunc.save_model(
        folder,
        python_model=str(package.code),
        artifacts={key: str(path) for key, path in package.folders.items()},
        model_config=package.settings,
        code_paths=[str(MOR)],
        signature=ModelSignature(takes, gives),
        input_example=pd.DataFrame([package.example]),
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", *NEEDED)],
    )


def _local(**models: str) -> dict[str, Path]:
    """Those models that are folders and so must travel along; a hub id is loaded by its name."""
    return {key: Path(name) for key, name in models.items() if Path(name).is_dir()}


def _example() -> dict[str, str]:
    """A model's input, which travels in the registry: blank, since a question may be its client's own."""
    blank = png_bytes(Image.new("RGB", (32, 32), "white"))
    return {"image": base64.b64encode(blank).decode(), "prompt": "What is shown?"}
