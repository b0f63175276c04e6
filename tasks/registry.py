"""The MLflow model registry: which policy and which reward models there are, which is judged, which serves.

``mor-policy`` and one ``mor-reward-<client>`` a client. The alias ``candidate`` is on what the last night made, ``champion`` on
what serves. The champion is what the alias of ``mor-policy`` says: that version's tags name the reward models that it was
aligned with and the champion before it, so that the other aliases can be set again after a kill.

A version is known by the digest of its files and settings: the same model is not registered twice.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mor.config import Params, UserError
from mor.evaluation.gate import Check, Verdict, judge
from mor.evaluation.metrics import Evaluation, Reply
from mor.seeds import stream
from tasks import paths
from tasks.tracking import digest, mlflow_client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

POLICY = "mor-policy"
CANDIDATE, CHAMPION = "candidate", "champion"
CODE = Path(__file__).parent / "serving"
MOR = Path(__file__).parents[1] / "mor"
NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "pillow", "numpy", "pandas",
          "pydantic", "pyyaml", "msgspec", "httpx", "scipy", "tenacity")  # fmt: skip
EVALUATION = "evaluation.json"  # beside the model: what its policy answered


@dataclass(frozen=True)
class Candidate:
    """A policy and the reward models that it was aligned with, by the versions of their registered models."""

    night: str
    policy: int
    rewards: dict[str, int]


def reward_name(client: str) -> str:
    """The registered name of a client's reward model."""
    return f"mor-reward-{client}"


# --- registering -------------------------------------------------------------------------------------------------------


def register(night: str, run_id: str, params: Params) -> Candidate:
    """Register the pipeline's models, those that are not registered yet, and point ``candidate`` at them.

    Their files become artifacts of the MLflow run ``run_id``. Registering the same again changes nothing.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    def signature(given: Sequence[str], text: Sequence[str], numbers: Sequence[str]) -> ModelSignature:
        found = dict.fromkeys(text, DataType.string) | dict.fromkeys(numbers, DataType.double)
        return ModelSignature(
            Schema([ColSpec(DataType.string, name) for name in given]),
            Schema([ColSpec(kind, name) for name, kind in found.items()]),
        )

    example = _example()
    rewards = {}
    for client, backbone in ((name, described.backbone) for name, described in params.clients.items()):
        asked = signature(("image", "prompt", "completion"), (), ("score",))
        folders = {"reward": paths.reward_folder(client)} | _local(backbone=backbone)
        row = example | {"completion": "7"}
        rewards[client] = _registered(
            reward_name(client), night, run_id, CODE / "reward.py", folders, {"backbone": backbone}, asked, row, {}
        )
    weights = [f"weight.{client}" for client in params.clients]
    asked = signature(("image", "prompt"), ("answer",), weights)
    folders = {"policy": paths.POLICY, "router": paths.round_folder(params.grpo.rounds)} | _local(base=params.base)
    settings = {"base": params.base, "max_tokens": params.grpo.max_completion_tokens}
    tags = {"mor.rewards": json.dumps(rewards)}
    policy = _registered(POLICY, night, run_id, CODE / "policy.py", folders, settings, asked, example, tags)
    for name, version in {**{reward_name(client): v for client, v in rewards.items()}, POLICY: policy}.items():
        mlflow_client().set_registered_model_alias(name, CANDIDATE, str(version))
    return _described(str(policy))


def _registered(
    name: str,
    night: str,
    run_id: str,
    code: Path,
    folders: Mapping[str, Path],
    settings: Mapping[str, Any],
    signature: ModelSignature,
    example: Mapping[str, str],
    tags: Mapping[str, str],
) -> int:
    """The version of the registered model with these files and settings, made if there is none."""
    described = [sorted((key, digest(folder)) for key, folder in folders.items()), dict(settings), dict(tags)]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    if same := [version for version in _versions(name) if version.tags.get("mor.digest") == key]:
        return max(int(version.version) for version in same)
    own = {"mor.digest": key, "mor.night": night, **tags}
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        from mlflow import pyfunc

        model = Path(scratch) / name
        pyfunc.save_model(
            model,
            python_model=str(code),
            artifacts={key: str(folder) for key, folder in folders.items()},
            model_config=dict(settings),
            code_paths=[str(MOR)],
            signature=signature,
            input_example=pd.DataFrame([example]),
            pip_requirements=[f"{package}=={importlib.metadata.version(package)}" for package in ("mlflow", *NEEDED)],
        )
        if name == POLICY and paths.EVALUATION.exists():
            (model / EVALUATION).write_bytes(paths.EVALUATION.read_bytes())
            own["mor.questions"] = digest(paths.EVAL)
        folder = f"models/{name}-{key}"
        mlflow_client().log_artifacts(run_id, str(model), folder)
        _ensure(name)
        source = f"{mlflow_client().get_run(run_id).info.artifact_uri}/{folder}"
        return int(mlflow_client().create_model_version(name, source, run_id, tags=own).version)


def _local(**models: str) -> dict[str, Path]:
    """Those models that are folders and so must travel along; a hub id is loaded by its name."""
    return {key: Path(name) for key, name in models.items() if Path(name).is_dir()}


def _example() -> dict[str, str]:
    """A question of the evaluation as a model's input; a blank one where there is none."""
    from io import BytesIO

    from PIL import Image

    picture, prompt = Image.new("RGB", (32, 32), "white"), "What is shown?"
    if paths.EVALUATION.exists():
        reply = next(iter(_answers(paths.EVALUATION.read_text())[1].values()))[0]
        prompt = reply.prompt
        with Image.open(paths.EVAL / reply.image) as image:
            picture = image.convert("RGB")
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    return {"image": base64.b64encode(buffer.getvalue()).decode(), "prompt": prompt}


# --- judging and promoting ---------------------------------------------------------------------------------------------


def judge_candidate(candidate: Candidate, params: Params) -> Verdict:
    """The gate's verdict on what ``reports/`` says of the candidate, against the champion or, without one, the base.

    If the candidate serves already, it is the verdict by which it came to serve: so a night that is cut off after the
    promotion and goes on ends with the same one.
    """
    serving = champion()
    if serving == candidate and (held := mlflow_client().get_model_version(POLICY, str(serving.policy)).tags.get("mor.checks")):
        return Verdict([Check(**check) for check in json.loads(held)])
    base, aligned = _answers(paths.EVALUATION.read_text())
    metrics = json.loads(paths.METRICS.read_text())
    kl = json.loads(paths.stage_metrics("align").read_text()).get("align.kl")
    nothing = {"mean": float("nan"), "deviation": float("nan")}  # a model that could score no pair does not pass
    calibrations = {
        client: found.get("calibration", nothing)
        for client, found in metrics["reward_models"].items()
        if client in found["pair_accuracy"]  # there are pairs of its own to score
    }
    return judge(
        aligned,
        base if serving is None else _champions_answers(serving, aligned),
        "base" if serving is None else "champion",
        clients=list(params.clients),
        kl=float("nan") if kl is None else float(kl),
        calibration={client: (found["mean"], found["deviation"]) for client, found in calibrations.items()},
        settings=params.gate,
        resamples=params.evaluation.resamples,
        confidence=params.evaluation.confidence,
        rng=stream(params.seed, "gate"),
    )


def _answers(text: str) -> tuple[dict[str, list[Reply]], dict[str, list[Reply]]]:
    """Base's and aligned policy's replies by suite."""
    answers = Evaluation.model_validate_json(text).answers
    return answers["base"], answers["aligned"]


def _champions_answers(serving: Candidate, asked: Mapping[str, list[Reply]]) -> dict[str, list[Reply]]:
    """What the champion answered to these questions when it was evaluated, or answers now if they are others."""
    from mlflow.artifacts import download_artifacts

    def key(replies: Sequence[Reply]) -> list[tuple[str, str, str, str]]:
        return [(reply.id, reply.image, reply.prompt, reply.answer) for reply in replies]

    version = mlflow_client().get_model_version(POLICY, str(serving.policy))
    if version.tags.get("mor.questions") != digest(paths.EVAL):  # pictures may have changed under their names
        return _answer_afresh(serving, asked)
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        stored = Path(download_artifacts(f"{version.source}/{EVALUATION}", dst_path=scratch))
        before = _answers(stored.read_text())[1]
    if all(suite in before and key(before[suite]) == key(replies) for suite, replies in asked.items()):
        return {suite: before[suite] for suite in asked}
    return _answer_afresh(serving, asked)


def _answer_afresh(serving: Candidate, asked: Mapping[str, list[Reply]]) -> dict[str, list[Reply]]:
    """The champion's replies to questions that it was not evaluated on."""
    from tasks.evaluation import read_suites

    model, found = load(POLICY, str(serving.policy)), {}
    questions = read_suites(asked)
    for suite, replies in asked.items():
        rows = [{"image": encoded(paths.EVAL / reply.image), "prompt": reply.prompt} for reply in replies]
        texts = model.predict(pd.DataFrame(rows))["answer"].tolist()
        found[suite] = [
            reply.model_copy(update={"text": text, "preferred": question.satisfies(text), "right": question.is_right(text)})
            for reply, text, question in zip(replies, texts, questions[suite], strict=True)
        ]
    return found


def promote(candidate: Candidate, verdict: Verdict, params: Params) -> None:
    """Make the candidate champion if it passed; the verdict becomes tags of its version either way."""
    version, before = str(candidate.policy), champion()
    told = {
        "mor.verdict": "passed" if verdict.passed else "refused",
        "mor.reasons": "; ".join(verdict.reasons)[:5000],
        "mor.checks": json.dumps([asdict(check) for check in verdict.checks]),
        "mor.gate": params.gate.model_dump_json(),
    }
    if verdict.passed and before is not None and before.policy != candidate.policy:
        told["mor.previous"] = str(before.policy)
    for key, value in told.items():
        mlflow_client().set_model_version_tag(POLICY, version, key, value)
    if not verdict.passed:
        return
    mlflow_client().set_registered_model_alias(POLICY, CHAMPION, version)
    settle()


def settle() -> None:
    """Point the reward models' ``champion`` at those of the policy's; a kill may have come between.

    The reward model of a client that has no part in the champion loses the alias.
    """
    serving = champion()
    due = {reward_name(client): str(version) for client, version in serving.rewards.items()} if serving else {}
    for model in mlflow_client().search_registered_models(f"name LIKE '{reward_name('%')}'", max_results=1000):
        held = model.aliases.get(CHAMPION)
        if model.name not in due:
            if held is not None:
                mlflow_client().delete_registered_model_alias(model.name, CHAMPION)
        elif str(held) != due[model.name]:
            mlflow_client().set_registered_model_alias(model.name, CHAMPION, due[model.name])


def champion() -> Candidate | None:
    """What serves, if anything does."""
    return _aliased(CHAMPION)


def candidate() -> Candidate | None:
    """What the last night made, if there was one."""
    return _aliased(CANDIDATE)


def is_judged(params: Params) -> bool:
    """Whether there is a candidate, and it serves or was refused by the present settings of the gate."""
    found = candidate()
    if found is None or found == champion():
        return found is not None
    tags = mlflow_client().get_model_version(POLICY, str(found.policy)).tags
    return bool(tags.get("mor.gate") == params.gate.model_dump_json())


def rollback() -> tuple[Candidate, Candidate]:
    """Let the champion before serve again; returns from and to. Raises ``UserError`` where there is none."""
    serving = champion()
    if serving is None:
        raise UserError("There is no champion yet: a night makes one (`python -m flows.nightly`)")
    previous = mlflow_client().get_model_version(POLICY, str(serving.policy)).tags.get("mor.previous")
    if previous is None:
        raise UserError(
            f"Version {serving.policy} of {POLICY}, night {serving.night}, is the first champion: there is none before it"
        )
    mlflow_client().set_registered_model_alias(POLICY, CHAMPION, previous)
    settle()
    return serving, _described(previous)


def _aliased(alias: str) -> Candidate | None:
    found = [model for model in mlflow_client().search_registered_models(f"name = '{POLICY}'") if alias in model.aliases]
    return _described(str(found[0].aliases[alias])) if found else None


def _described(version: str) -> Candidate:
    tags = mlflow_client().get_model_version(POLICY, version).tags
    return Candidate(tags["mor.night"], int(version), json.loads(tags["mor.rewards"]))


# --- using -------------------------------------------------------------------------------------------------------------


def load(name: str, version: str) -> Any:
    """A registered model, ready to predict."""
    with _quiet():
        from mlflow import pyfunc

        return pyfunc.load_model(f"models:/{name}/{version}")


def encoded(image: Path) -> str:
    """An image file as the models take it: base64 of a PNG. Raises ``UserError`` if it is none."""
    from io import BytesIO

    from PIL import Image, UnidentifiedImageError

    buffer = BytesIO()
    try:
        with Image.open(image) as picture:
            picture.convert("RGB").save(buffer, format="PNG")
    except FileNotFoundError:
        raise UserError(f"{image}: no such file; name a picture") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:  # PIL's
        raise UserError(f"{image}: cannot be read as a picture ({error}); save it again as PNG") from None
    return base64.b64encode(buffer.getvalue()).decode()


def ask(image: Path, prompt: str) -> tuple[Candidate, str, dict[str, float]]:
    """The champion, its answer, and each client's weight for such a prompt. Raises ``UserError`` without a champion."""
    serving, picture = champion(), encoded(image)
    if serving is None:
        raise UserError("There is no champion yet: a night makes one (`python -m flows.nightly`)")
    row = load(POLICY, str(serving.policy)).predict(pd.DataFrame([{"image": picture, "prompt": prompt}])).iloc[0]
    weights = {name.removeprefix("weight."): float(np.round(row[name], 4)) for name in row.index if name.startswith("weight.")}
    return serving, str(row["answer"]), weights


def _versions(name: str) -> list[ModelVersion]:
    return list(mlflow_client().search_model_versions(f"name = '{name}'", max_results=1000))


def _ensure(name: str) -> None:
    if not mlflow_client().search_registered_models(f"name = '{name}'"):
        mlflow_client().create_registered_model(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow without progress bars and hints, which tell a night's reader nothing."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
