"""MLflow: one parent run an execution of the pipeline, and below it one level of child runs (stages, GRPO rounds).

The parent is found in this order: the run that ``MOR_PARENT_RUN_ID`` names (the pipeline flow sets it); the run of the
``dvc`` process that this stage descends from, made by the first stage that asks; a fresh one for a stage run by hand.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import yaml

from mor.config import Params, load_params
from mor.evaluation.metrics import flatten as numbers
from mor.files import digest, read_json, write_whole
from tasks.project import paths
from tasks.tracking.open_run import StageRun, closing, dotted, open_child, process_name
from tasks.tracking.store import experiment, keep_files, mlflow_client, run_address, search_runs

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENT_VARIABLE = "MOR_PARENT_RUN_ID"
LAST_STAGE = "report"  # its end completes the picture of a plain `dvc repro`
WITHOUT_EFFECT = {  # settings that cannot change a result, and those of what is no part of an execution
    "threads", "zoo", "benchmark", "nightly", "drift", "gate",
    "grpo.checkpoint_steps", "evaluation.batch_size", "evaluation.samples",
}  # fmt: skip


@contextmanager
def stage_run(stage: str, params: Mapping[str, Any]) -> Iterator[StageRun]:
    """Run a stage inside a child of the execution's parent run.

    ``params`` maps a section's name to its settings (a mapping or a pydantic model), or a setting's name to its value:
    ``{"seed": 0, "rewards": params.rewards}``. At the end ``reports/stages/<stage>.json`` holds the last value of every
    metric and ``seconds``; a number that is not finite becomes ``null``. An exception marks the run as failed.
    """
    settings = load_params(paths.PARAMS)  # the whole of it tells where a run came from
    tags = origin(settings.seed, settings.router.kind)
    with _parent(settings) as parent, open_child(parent, paths.stage_name(stage), stage, params, tags) as run:
        began = time.perf_counter()
        yield run
        run.metrics({"seconds": time.perf_counter() - began})
        finite = {name: value if math.isfinite(value) else None for name, value in sorted(run.last.items())}
        write_whole(paths.stage_metrics(stage), json.dumps(finite, indent=2) + "\n")
        if stage == LAST_STAGE and PARENT_VARIABLE not in os.environ:
            reconcile(parent, settings)


def reconcile(parent_id: str, settings: Params) -> list[str]:
    """Complete the record of an execution, of which DVC may have skipped stages; returns the names of those.

    A stage that ``dvc.lock`` holds and that has no run below the parent gets one, tagged ``mor.cached``, with its
    recorded settings and metrics. The parent gets the metrics of ``reports/metrics.json``, the versions of the data, the
    final ``dvc.lock`` digest, and the files that a comparison needs. Calling it again changes nothing.
    """
    lock, parent = read_lock(), StageRun(parent_id, parent_id, "pipeline")
    cached = _stages_without_run(parent_id, lock, settings.clients)
    tags = origin(settings.seed, settings.router.kind) | {"mor.cached": "true"}
    for stage in cached:
        used = lock["stages"][stage].get("params", {}).get(str(paths.PARAMS), {})
        with open_child(parent_id, paths.stage_name(stage), stage, used, tags) as run:
            recorded = read_json(paths.stage_metrics(stage))
            run.metrics({name: value for name, value in recorded.items() if value is not None})
    parent.headline(numbers(read_json(paths.METRICS)))
    held = mlflow_client().get_run(parent_id).data.params  # those of an earlier call; MLflow lets no param change
    versions = {f"data.{name}": version for name, version in data_versions(lock, settings.clients).items()}
    parent.params({name: version for name, version in versions.items() if name not in held})
    kept = [file for file in (paths.METRICS, paths.EVALUATION, paths.PARAMS, paths.DVC_LOCK) if file.exists()]
    keep_files(parent_id, kept, {"mor.dvc_lock": _lock_digest()})
    return cached


def _stages_without_run(parent_id: str, lock: Mapping[str, Any], clients: Collection[str]) -> list[str]:
    """The stages of ``dvc.lock`` of which no run below the parent ended well, or is this process's own."""
    own = process_name(psutil.Process())
    ran = {
        paths.stage_name(child.data.tags.get("mor.stage", ""))
        for child in _children(parent_id)
        if child.info.status == "FINISHED" or child.data.tags.get("mor.process") == own  # a killed one stays RUNNING
    }
    present = (s for s in lock.get("stages") or {} if "@" not in s or s.partition("@")[2] in clients)  # DVC keeps removed ones
    return [stage for stage in present if paths.stage_name(stage) not in ran]


# --- parents -----------------------------------------------------------------------------------------------------------


def find_parent(execution: str) -> str | None:
    """Id of the newest parent run of that execution, if there is one."""
    found = search_runs(f"tags.`mor.execution` = '{execution}'")
    return str(found[0].info.run_id) if found else None


def open_parent(execution: str, settings: Params, name: str = "", tags: Mapping[str, str] | None = None) -> str:
    """Make a parent run for an execution of the pipeline, tagged with that; returns the run's id.

    It holds the settings that a result can depend on, and no others, so that runs differ only where something differs.
    """
    name = name or f"{settings.router.kind} seed {settings.seed}"
    own = {**origin(settings.seed, settings.router.kind), "mor.execution": execution, **(tags or {})}
    parent: str = mlflow_client().create_run(experiment(), tags=own, run_name=name).info.run_id
    StageRun(parent, parent, "pipeline").params(with_effect(settings.model_dump()))
    return parent


def close_parent(parent_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Set the parent's final status, and close the runs below it whose process was killed."""
    alive = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            alive.add(process_name(process))
    for child in _children(parent_id):
        if child.info.status == "RUNNING" and child.data.tags.get("mor.process") not in alive:
            mlflow_client().set_terminated(child.info.run_id, "KILLED")
    mlflow_client().set_terminated(parent_id, status)


@contextmanager
def _parent(settings: Params) -> Iterator[str]:
    """Id of the execution's parent run; unless the pipeline flow owns it, its status follows the stage's."""
    if owned := os.environ.get(PARENT_VARIABLE):
        yield owned
        return
    execution = execution_name()
    parent = find_parent(execution) or open_parent(execution, settings)
    mlflow_client().update_run(parent, status="RUNNING")
    with closing(parent):
        yield parent


def execution_name() -> str:
    """The name of the execution: the ``dvc`` process above this one, or else this process."""
    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            if any(Path(word).name in {"dvc", "dvc.exe"} for word in process.cmdline()[:3]):
                return process_name(process)
    return process_name(psutil.Process())


# --- stages of a parent ------------------------------------------------------------------------------------------------


def stage_values(parent_id: str, stage: str) -> dict[str, float]:
    """The last metrics of a stage's newest run below that parent; empty if it has none."""
    run = _stage_run(parent_id, stage)
    return dict(run.data.metrics) if run else {}


def stage_address(parent_id: str, stage: str) -> str:
    """Address of the page that shows a stage's newest run, or the parent where there is none, in MLflow's user interface."""
    return run_address(_stage_run(parent_id, stage) or mlflow_client().get_run(parent_id))


def _children(parent_id: str) -> list[Run]:
    """Newest first."""
    return search_runs(f"tags.`mlflow.parentRunId` = '{parent_id}'")


def _stage_run(parent_id: str, stage: str) -> Run | None:
    """The newest run of a stage; its rounds have names of their own."""
    return next((child for child in _children(parent_id) if child.info.run_name == paths.stage_name(stage)), None)


# --- where a run came from ---------------------------------------------------------------------------------------------


def with_effect(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, without those that cannot change a result and those that are not set."""
    return {
        name: value
        for name, value in dotted(settings).items()
        if value is not None and not {name, name.partition(".")[0]} & WITHOUT_EFFECT and not name.endswith(".shared_anchors")
    }


def origin(seed: int, router: str) -> dict[str, str]:
    """Where the code, the data and the settings of a run came from, as tags; ``router`` is its kind."""
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{paths.DVC_LOCK}", f":!{paths.REPORTS}")
    return {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": str(paths.DVC_YAML),
        "mlflow.source.git.commit": commit or "unknown",
        "mor.dirty": str(bool(changed)).lower(),
        "mor.dvc_lock": _lock_digest(),
        "mor.seed": str(seed),
        "mor.router": router,
    }


def read_lock() -> dict[str, Any]:
    """``dvc.lock``; empty where there is none."""
    content: dict[str, Any] = yaml.safe_load(paths.DVC_LOCK.read_text()) if paths.DVC_LOCK.exists() else {}
    return content or {}


def data_versions(lock: Mapping[str, Any], clients: Iterable[str]) -> dict[str, str]:
    """The version of each client's data, the public prompts and the evaluation sets that ``dvc.lock`` was made from.

    Eight hexadecimal digits of DVC's content digest, by the client's name, ``public`` and ``eval``.
    """
    folders = {paths.client_folder(client): client for client in clients} | {paths.PUBLIC: "public", paths.EVAL: "eval"}
    read = [dep for stage in (lock.get("stages") or {}).values() for dep in stage.get("deps", [])]
    found = {Path(dep["path"]): str(dep.get("md5", ""))[:8] for dep in read}
    return {name: found[folder] for folder, name in folders.items() if folder in found}


def _git(*arguments: str) -> str:
    """Output of a git command; empty outside a repository or without git."""
    with suppress(OSError):
        return subprocess.run(["git", *arguments], check=False, capture_output=True, text=True).stdout.strip()
    return ""


def _lock_digest() -> str:
    return digest(paths.DVC_LOCK) if paths.DVC_LOCK.exists() else "none"
