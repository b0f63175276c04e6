"""The MLflow model registry: which policy and which reward models there are, which is judged, which serves.

``mor-policy`` and one ``mor-reward-<client>`` a client. The alias ``candidate`` is on what the last night made, ``champion`` on
what serves. The champion is what the alias of ``mor-policy`` says: that version's tags name the reward models that it was
aligned with and the champion before it, so that the other aliases can be set again after a kill. The alias ``baseline`` is on
the version that a person approved, with who and when as tags: nights together may lose only so much against it.

Whoever reads the registry reads all of it. So tags hold names, numbers and our own sentences, and nothing that a client wrote.

A version is known by the digest of its files and settings: the same model is not registered twice.
"""

from __future__ import annotations

import base64
import getpass
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
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mor.config import Params, UserError
from mor.evaluation.gate import BASE, BASELINE, CHAMPION, Check, Other, Verdict, judge, same_baseline
from mor.evaluation.metrics import HELD_OUT, Evaluation, Reply
from mor.seeds import stream
from tasks.project import paths
from tasks.tracking.runs import digest, mlflow_client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

POLICY = "mor-policy"
CANDIDATE = "candidate"  # an alias, as are CHAMPION and BASELINE
CODE = Path(__file__).parent / "serving"
MOR = Path(__file__).parents[2] / "mor"
NEEDED = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors", "pillow", "numpy", "pandas",
          "pydantic", "pyyaml", "msgspec", "httpx", "scipy", "tenacity")  # fmt: skip
EVALUATION = "evaluation.json"  # beside the model: what its policy answered
ROWS = 16  # that a champion answers afresh at a time: the largest pictures of which a served model takes no more
TAG = 100_000  # characters that a version's tag holds
AUTOMATIC = "automatically, as the first champion"  # who pinned a baseline, where no person did


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
    """A model's input, which travels in the registry: blank, since a question may be its client's own."""
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", (32, 32), "white").save(buffer, format="PNG")
    return {"image": base64.b64encode(buffer.getvalue()).decode(), "prompt": "What is shown?"}


# --- judging and promoting ---------------------------------------------------------------------------------------------


def judge_candidate(candidate: Candidate, params: Params) -> Verdict:
    """The gate's verdict on what ``reports/`` says of the candidate, against the champion and the baseline, or the base.

    If the candidate serves already, it is the verdict by which it came to serve: so a night that is cut off after the
    promotion and goes on ends with the same one.
    """
    serving = champion()
    if serving == candidate and (held := mlflow_client().get_model_version(POLICY, str(serving.policy)).tags.get("mor.checks")):
        return Verdict([Check(**check) for check in json.loads(held)])
    base, aligned = evaluated()
    before = _stored(serving) if serving else None
    verdict = judge(
        aligned,
        _others(serving, before, base, aligned, params),
        clients=list(params.clients),
        kl=_number(_read(paths.stage_metrics("align")).get("align.kl")),
        calibration=_calibration(params, before),
        settings=params.gate,
        resamples=params.evaluation.resamples,
        confidence=params.evaluation.confidence,
        rng=stream(params.seed, "gate"),
    )
    if serving and (baseline() or serving).policy == serving.policy:
        return Verdict([*verdict.checks, same_baseline(serving.policy, params.gate)])
    return verdict


def evaluated() -> tuple[dict[str, list[Reply]], dict[str, list[Reply]]]:
    """Base's and aligned policy's replies by suite; raises ``UserError`` where one is missing."""
    answers = Evaluation.model_validate_json(paths.EVALUATION.read_text()).answers
    if missing := {"base", "aligned"} - answers.keys():
        raise UserError(f"{paths.EVALUATION}: no answers of {', '.join(sorted(missing))}; run `dvc repro --force evaluate`")
    return answers["base"], answers["aligned"]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file, for what is missing does not pass."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def _number(value: Any) -> float:
    """What stands in a JSON file as a number; not a number where it is none or is missing, and no bound lets that pass."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _calibration(params: Params, before: Evaluation | None) -> dict[str, tuple[float, float]]:
    """Mean and deviation of each client's reward model; of those that have pairs of their own to score, or had."""
    described = _read(paths.METRICS).get("reward_models", {})
    found = {}
    for client in params.clients:
        told = described.get(client)
        if told is None or client in told.get("pair_accuracy", {}) or (before and client in before.calibration):
            numbers = (told or {}).get("calibration") or {}
            found[client] = (_number(numbers.get("mean")), _number(numbers.get("deviation")))
    return found


def _others(
    serving: Candidate | None, before: Evaluation | None,
    base: Mapping[str, Sequence[Reply]], asked: Mapping[str, Sequence[Reply]], params: Params,
) -> list[Other]:  # fmt: skip
    """What the candidate is compared with: the base alone, or the champion and, if that is another, the baseline."""
    if serving is None:
        return [Other(BASE, base)]
    found, pinned = [(CHAMPION, serving, before)], baseline() or serving
    if pinned.policy != serving.policy:
        found.append((BASELINE, pinned, _stored(pinned)))
    return [_other(name, version, stored, base, asked, params) for name, version, stored in found]


def _other(
    name: str, version: Candidate, stored: Evaluation | None,
    base: Mapping[str, Sequence[Reply]], asked: Mapping[str, Sequence[Reply]], params: Params,
) -> Other:  # fmt: skip
    answered = stored.answers.get("aligned", {}) if stored else {}
    new = {client for client in params.clients if client not in version.rewards}
    judged = {suite: list(replies) for suite, replies in asked.items() if replies and suite in (*params.clients, HELD_OUT)}
    known = {suite: replies for suite, replies in judged.items() if suite not in new}
    answers = {suite: base[suite] for suite in judged if suite in new} | _answers_of(version, answered, known)
    return Other(name, answers, [suite for suite, replies in answered.items() if replies], list(version.rewards), new)


def _stored(version: Candidate) -> Evaluation | None:
    """What was kept beside a registered policy of its evaluation; None where nothing was."""
    from mlflow.artifacts import download_artifacts

    registered = mlflow_client().get_model_version(POLICY, str(version.policy))
    if "mor.questions" not in registered.tags:
        return None
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        kept = Path(download_artifacts(f"{registered.source}/{EVALUATION}", dst_path=scratch))
        return Evaluation.model_validate_json(kept.read_text())


def _answers_of(
    version: Candidate, stored: Mapping[str, list[Reply]], asked: Mapping[str, list[Reply]]
) -> dict[str, list[Reply]]:
    """What that policy answered to these questions when it was evaluated, or answers now if they are others."""

    def key(replies: Sequence[Reply]) -> list[tuple[str, str, str, str]]:
        return [(reply.id, reply.image, reply.prompt, reply.answer) for reply in replies]

    tags = mlflow_client().get_model_version(POLICY, str(version.policy)).tags
    same = tags.get("mor.questions") == digest(paths.EVAL)  # pictures may have changed under their names
    if same and all(suite in stored and key(stored[suite]) == key(replies) for suite, replies in asked.items()):
        return {suite: stored[suite] for suite in asked}
    return _answer_afresh(version, asked)


def _answer_afresh(version: Candidate, asked: Mapping[str, list[Reply]]) -> dict[str, list[Reply]]:
    """A registered policy's replies to questions that it was not evaluated on."""
    from tasks.stages.evaluate import read_suites

    model, found = load(POLICY, str(version.policy)), {}
    questions = read_suites(asked)
    for suite, replies in asked.items():
        rows = [{"image": encoded(paths.EVAL / reply.image), "prompt": reply.prompt} for reply in replies]
        parts = [pd.DataFrame(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
        texts = [text for part in parts for text in model.predict(part)["answer"].tolist()]
        found[suite] = [
            reply.model_copy(update={"text": text, "preferred": question.satisfies(text), "right": question.is_right(text)})
            for reply, text, question in zip(replies, texts, questions[suite], strict=True)
        ]
    return found


def promote(candidate: Candidate, verdict: Verdict, params: Params) -> None:
    """Make the candidate champion if it passed; the verdict becomes tags of its version either way."""
    version, before = str(candidate.policy), champion()
    checks = json.dumps([asdict(check) for check in verdict.checks])
    told = {
        "mor.verdict": "passed" if verdict.passed else "refused",
        "mor.reasons": "; ".join(verdict.reasons)[:5000],
        "mor.checks": checks if len(checks) <= TAG else "[]",
        "mor.gate": params.gate.model_dump_json(),
        "mor.baseline": _pinned(),
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
    """Point the reward models' ``champion`` at those of the policy's, and pin a champion where no baseline is.

    A kill may have come between. The reward model of a client that has no part in the champion loses the alias.
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
    if serving and baseline() is None:
        _pin(str(serving.policy), AUTOMATIC)


def pin(wanted: str | None = None) -> Candidate:
    """Make a version of the policy, by its number or its night, the baseline; the champion where none is named.

    Whoever runs this approves of it, and is named in its tags. Raises ``UserError`` for what the gate has not let pass.
    """
    serving = champion()
    if wanted is None and serving is None:
        raise UserError("There is no champion yet: a night makes one (`mor night`)")
    own = str(serving.policy) if serving else ""
    wanted = wanted or own
    known = {str(version.version): version for version in _versions(POLICY)}
    passed = {number: v for number, v in known.items() if number == own or v.tags.get("mor.verdict") == "passed"}
    fitting = [number for number, v in passed.items() if v.tags.get("mor.night") == wanted.removeprefix("night/")]
    number = wanted if wanted in known else max(fitting, key=int, default="")  # a number is a version before it is a night
    if number not in passed:
        there = ", ".join(f"{number} (night {passed[number].tags.get('mor.night')})" for number in sorted(passed, key=int))
        raise UserError(
            f"{wanted!r} is no version of {POLICY} that passed the gate, nor a night that made one; known: {there or 'none'}"
        )
    _pin(number, getpass.getuser())
    return _described(number)


def _pin(version: str, who: str) -> None:
    """The tags first: with the alias it is done."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    for key, value in {"mor.pinned_by": who, "mor.pinned_at": when}.items():
        mlflow_client().set_model_version_tag(POLICY, version, key, value)
    mlflow_client().set_registered_model_alias(POLICY, BASELINE, version)


def champion() -> Candidate | None:
    """What serves, if anything does."""
    return _aliased(CHAMPION)


def baseline() -> Candidate | None:
    """What nights together may lose little against, if anything is pinned."""
    return _aliased(BASELINE)


def candidate() -> Candidate | None:
    """What the last night made, if there was one."""
    return _aliased(CANDIDATE)


def is_judged(params: Params) -> bool:
    """Whether there is a candidate, and it serves or was judged by the gate's present settings and baseline."""
    found = candidate()
    if found is None or found == champion():
        return found is not None
    tags = mlflow_client().get_model_version(POLICY, str(found.policy)).tags
    return bool(tags.get("mor.gate") == params.gate.model_dump_json() and tags.get("mor.baseline") == _pinned())


def _pinned() -> str:
    """The baseline's version, as a tag."""
    pinned = baseline()
    return str(pinned.policy) if pinned else "none"


def rollback() -> tuple[Candidate, Candidate]:
    """Let the champion before serve again; returns from and to. Raises ``UserError`` where there is none."""
    serving = champion()
    if serving is None:
        raise UserError("There is no champion yet: a night makes one (`mor night`)")
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

    from PIL import Image

    from mor.data.pictures import opened, pixels, why

    buffer = BytesIO()
    try:
        with opened(image) as picture:
            pixels(picture).save(buffer, format="PNG")
    except FileNotFoundError:
        raise UserError(f"{image}: no such file; name a picture") from None
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:  # PIL's
        raise UserError(f"{image}: cannot be read as a picture ({why(error)}); save it again as PNG") from None
    return base64.b64encode(buffer.getvalue()).decode()


def ask(image: Path, prompt: str) -> tuple[Candidate, str, dict[str, float]]:
    """The champion, its answer, and each client's weight for such a prompt. Raises ``UserError`` without a champion."""
    serving, picture = champion(), encoded(image)
    if serving is None:
        raise UserError("There is no champion yet: a night makes one (`mor night`)")
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
