"""MLflow: one parent run an execution of the pipeline, and below it one level of child runs (stages, GRPO rounds).

The parent is found in this order: the run that ``MOR_PARENT_RUN_ID`` names (the pipeline flow sets it); the run of the
``dvc`` process that this stage descends from, made by the first stage that asks; a fresh one for a stage run by hand.
Runs go where ``MLFLOW_TRACKING_URI`` says, else to MLflow's own defaults (``mlflow.db`` and ``mlruns/`` in the project's
folder), so that a bare ``mlflow ui`` there shows them.

No ambient run: every call names its run, because MLflow drops ``MLFLOW_RUN_ID`` at first use and trainers may start
runs of their own. MLflow takes 3 s to import, so it is imported when the first run is opened.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
import yaml
from pydantic import BaseModel

from mor.config import load_params
from mor.evaluation.metrics import flatten as numbers
from tasks import paths

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "mor"
PARENT_VARIABLE = "MOR_PARENT_RUN_ID"
LAST_STAGE = "report"  # its end completes the picture of a plain `dvc repro`
FLUSH = 200  # metrics held back before they go to the store in one batch; MLflow takes 1000
DIGEST_LENGTH = 16  # MLflow takes 36


@dataclass
class StageRun:
    """A run that is open. Metrics are held back and written in batches, for the SQLite store is slow to commit."""

    run_id: str
    parent_id: str
    stage: str
    last: dict[str, float] = field(default_factory=dict)  # last value of every metric
    _pending: list[Any] = field(default_factory=list)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record metrics by their dotted names; ``step`` makes them points of a curve."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, value in values.items():
            self.last[name] = float(value)
            self._pending.append(Metric(name, float(value), now, step or 0))
        if len(self._pending) >= FLUSH:
            self.flush()

    def flush(self) -> None:
        """Write what is held back."""
        for start in range(0, len(self._pending), 1000):
            _client().log_batch(self.run_id, metrics=self._pending[start : start + 1000])
        self._pending.clear()

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted names."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)) for name, value in dotted(values).items()]
        for start in range(0, len(entries), 100):
            _client().log_batch(self.run_id, params=entries[start : start + 100])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of a folder under its own name, in the run's artifacts (below ``folder``)."""
        if path.is_dir():
            _client().log_artifacts(self.run_id, str(path), "/".join(filter(None, (folder, path.name))))
        else:
            _client().log_artifact(self.run_id, str(path), folder)

    def dataset(self, name: str, path: Path, rows: int, context: str) -> None:
        """Record that this run read ``path``: its name, digest and number of rows; ``context`` says for what ("training")."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, profile = json.dumps({"uri": path.as_posix()}), json.dumps({"num_rows": rows})
        entity = Dataset(name, digest(path), "local", source, profile=profile)
        entry = DatasetInput(entity, [InputTag("mlflow.data.context", context)])
        _client().log_inputs(self.run_id, datasets=[entry])

    def headline(self, values: Mapping[str, float]) -> None:
        """Record metrics on the parent run, where executions are compared."""
        _log_changed(self.parent_id, values)

    @contextmanager
    def child(
        self, name: str, params: Mapping[str, Any] | None = None, tags: Mapping[str, str] | None = None
    ) -> Iterator[StageRun]:
        """A further child of the *parent*, such as ``align round 1``; its metrics stay out of the stage's file."""
        with _open_child(self.parent_id, name, self.stage, params or {}, tags or {}) as run:
            yield run


@contextmanager
def stage_run(stage: str, params: Mapping[str, Any]) -> Iterator[StageRun]:
    """Run a stage inside a child of the execution's parent run.

    ``params`` maps a section's name to its settings (a mapping or a pydantic model), or a setting's name to its value:
    ``{"seed": 0, "rewards": params.rewards}``. At the end ``reports/stages/<stage>.json`` holds the last value of every
    metric and ``seconds``; a number that is not finite becomes ``null``. An exception marks the run as failed.
    """
    with _parent() as parent, _open_child(parent, paths.stage_name(stage), stage, params, {}) as run:
        began = time.perf_counter()
        yield run
        run.metrics({"seconds": time.perf_counter() - began})
        _write_json(paths.stage_metrics(stage), run.last)
        if stage == LAST_STAGE and PARENT_VARIABLE not in os.environ:
            reconcile(parent)


def reconcile(parent_id: str) -> list[str]:
    """Complete the record of an execution, of which DVC may have skipped stages; returns the names of those.

    A stage that ``dvc.lock`` holds and that has no run below the parent gets one, tagged ``mor.cached``, with its
    recorded settings and metrics. The parent gets the metrics of ``reports/metrics.json`` and the final ``dvc.lock``
    digest. Calling it again changes nothing.
    """
    ran = {paths.stage_name(child.data.tags.get("mor.stage", "")) for child in _children(parent_id)}
    cached, clients = [], load_params(paths.PARAMS).clients
    for stage, entry in (_yaml(paths.DVC_LOCK).get("stages") or {}).items():
        removed = "@" in stage and stage.partition("@")[2] not in clients  # DVC keeps a removed client's entry
        if removed or paths.stage_name(stage) in ran:
            continue
        settings = entry.get("params", {}).get(str(paths.PARAMS), {})
        with _open_child(parent_id, paths.stage_name(stage), stage, settings, {"mor.cached": "true"}) as run:
            recorded = _json(paths.stage_metrics(stage))
            run.metrics({name: value for name, value in recorded.items() if value is not None})
        cached.append(stage)
    _log_changed(parent_id, numbers(_json(paths.METRICS)))
    _client().set_tag(parent_id, "mor.dvc_lock", _lock_digest())
    return cached


def prepare() -> None:
    """Make the store and the experiment now, before several processes do it at once."""
    _experiment()


def open_parent(execution: str, name: str = "") -> str:
    """Make a parent run for an execution of the pipeline, tagged with that; returns the run's id."""
    settings = load_params(paths.PARAMS)
    name = name or f"{settings.router.kind} seed {settings.seed}"
    run = _client().create_run(_experiment(), tags=_tags() | {"mor.execution": execution}, run_name=name)
    parent: str = run.info.run_id
    StageRun(parent, parent, "pipeline").params(settings.model_dump())
    return parent


def close_parent(parent_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Set the parent's final status, and close the runs below it whose process was killed."""
    alive = _processes()
    for child in _children(parent_id):
        if child.info.status == "RUNNING" and child.data.tags.get("mor.process") not in alive:
            _client().set_terminated(child.info.run_id, "KILLED")
    _client().set_terminated(parent_id, status)


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names: ``{"a": {"b": 1}}`` -> ``{"a.b": 1}``; pydantic models count as mappings."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        value = value.model_dump() if isinstance(value, BaseModel) else value
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def digest(path: Path) -> str:
    """Content digest of a file, or of a folder's files and their names."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()[:DIGEST_LENGTH]


# --- finding and opening runs --------------------------------------------------------------------------------------


@contextmanager
def _parent() -> Iterator[str]:
    """Id of the execution's parent run; unless the pipeline flow owns it, its status follows the stage's."""
    if owned := os.environ.get(PARENT_VARIABLE):
        yield owned
        return
    execution = _execution()
    found = _client().search_runs([_experiment()], f"tags.`mor.execution` = '{execution}'", max_results=1)
    parent = found[0].info.run_id if found else open_parent(execution)
    _client().update_run(parent, status="RUNNING")
    with _closing(parent):
        yield parent


def _children(parent_id: str) -> list[Run]:
    return list(_client().search_runs([_experiment()], f"tags.`mlflow.parentRunId` = '{parent_id}'", max_results=1000))


def _execution() -> str:
    """The name of the execution: the ``dvc`` process above this one, or else this process."""
    for process in psutil.Process().parents():
        with suppress(psutil.Error):
            if any(Path(word).name in {"dvc", "dvc.exe"} for word in process.cmdline()[:3]):
                return _process_name(process)
    return _process_name(psutil.Process())


def _process_name(process: psutil.Process) -> str:
    return f"{process.pid}@{process.create_time():.2f}"  # the time tells apart two processes that had the same number


def _processes() -> set[str]:
    names = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            names.add(_process_name(process))
    return names


@contextmanager
def _open_child(parent: str, name: str, stage: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[StageRun]:
    own = {"mlflow.parentRunId": parent, "mor.stage": stage, "mor.process": _process_name(psutil.Process())}
    created = _client().create_run(_experiment(), tags=_tags() | own | dict(tags), run_name=name)
    run = StageRun(created.info.run_id, parent, stage)
    with _closing(run.run_id, run.flush):
        run.params(params)
        yield run


@contextmanager
def _closing(run_id: str, flush: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Give the run its final status, whatever happens inside."""
    try:
        yield
        flush()
    except BaseException as error:
        with suppress(Exception):  # the stage's own error matters more than one of the store
            flush()
            _client().set_tag(run_id, "mor.error", f"{type(error).__name__}: {error}"[:500])
            _client().set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    _client().set_terminated(run_id, "FINISHED")


@cache
def _client() -> MlflowClient:
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a new store reports each of its migrations
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient()


@cache
def _experiment() -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = _client().get_experiment_by_name(name)
    return str(found.experiment_id if found else _client().create_experiment(name))


def _tags() -> dict[str, str]:
    """Where the code, the data and the settings of a run came from."""
    settings = load_params(paths.PARAMS)
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{paths.DVC_LOCK}", f":!{paths.REPORTS}")
    return {
        "mlflow.user": getpass.getuser(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": str(paths.DVC_YAML),
        "mlflow.source.git.commit": commit or "unknown",
        "mor.dirty": str(bool(changed)).lower(),
        "mor.dvc_lock": _lock_digest(),
        "mor.seed": str(settings.seed),
        "mor.router": settings.router.kind,
    }


def _git(*arguments: str) -> str:
    """Output of a git command; empty outside a repository or without git."""
    with suppress(OSError):
        return subprocess.run(["git", *arguments], check=False, capture_output=True, text=True).stdout.strip()
    return ""


def _lock_digest() -> str:
    return digest(paths.DVC_LOCK) if paths.DVC_LOCK.exists() else "none"


def _log_changed(run_id: str, values: Mapping[str, float]) -> None:
    """Log those of ``values`` that the run does not hold already, so that repeating it adds no points."""
    from mlflow.entities import Metric

    held = _client().get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    new = [Metric(name, float(value), now, 0) for name, value in values.items() if held.get(name) != float(value)]
    for start in range(0, len(new), 1000):
        _client().log_batch(run_id, metrics=new[start : start + 1000])


# --- files ----------------------------------------------------------------------------------------------------------


def _write_json(path: Path, metrics: Mapping[str, float]) -> None:
    finite = {name: value if math.isfinite(value) else None for name, value in sorted(metrics.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finite, indent=2) + "\n")


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def _yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    return content
