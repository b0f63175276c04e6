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
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from mor.text import public_message
from tasks.project import paths

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "mor"
PARENT_VARIABLE = "MOR_PARENT_RUN_ID"
LAST_STAGE = "report"  # its end completes the picture of a plain `dvc repro`
FLUSH = 200  # metrics held back before they go to the store in one batch; MLflow takes 1000
DIGEST_LENGTH = 16  # MLflow takes 36
RESULTS = "results"  # the parent's artifact folder of what an execution ended with
ADDRESS_VARIABLE = "MOR_MLFLOW_UI"
ADDRESS = "http://127.0.0.1:5000"  # where `mlflow ui` answers unless told otherwise
QUIET = {  # settings that cannot change a result, and those of what is no part of an execution
    "threads", "zoo", "benchmark", "nightly", "drift", "gate",
    "grpo.checkpoint_steps", "evaluation.batch_size", "evaluation.samples",
}  # fmt: skip


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
            mlflow_client().log_batch(self.run_id, metrics=self._pending[start : start + 1000])
        self._pending.clear()

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted names."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)) for name, value in dotted(values).items()]
        for start in range(0, len(entries), 100):
            mlflow_client().log_batch(self.run_id, params=entries[start : start + 100])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of a folder under its own name, in the run's artifacts (below ``folder``)."""
        if path.is_dir():
            mlflow_client().log_artifacts(self.run_id, str(path), "/".join(filter(None, (folder, path.name))))
        else:
            mlflow_client().log_artifact(self.run_id, str(path), folder)

    def dataset(self, name: str, path: Path, rows: int, context: str) -> None:
        """Record that this run read ``path``: its name, digest and number of rows; ``context`` says for what ("training")."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, profile = json.dumps({"uri": path.as_posix()}), json.dumps({"num_rows": rows})
        entity = Dataset(name, digest(path), "local", source, profile=profile)
        entry = DatasetInput(entity, [InputTag("mlflow.data.context", context)])
        mlflow_client().log_inputs(self.run_id, datasets=[entry])

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
    recorded settings and metrics. The parent gets the metrics of ``reports/metrics.json``, the versions of the data, the
    final ``dvc.lock`` digest, and the files that a comparison needs. Calling it again changes nothing.
    """
    ran = {paths.stage_name(child.data.tags.get("mor.stage", "")) for child in _children(parent_id) if _counts(child)}
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
    held = mlflow_client().get_run(parent_id).data.params  # those of an earlier call; MLflow lets no param change
    versions = {f"data.{name}": version for name, version in data_versions(_yaml(paths.DVC_LOCK), clients).items()}
    StageRun(parent_id, parent_id, "pipeline").params({n: v for n, v in versions.items() if n not in held})
    keep_files(
        parent_id,
        [file for file in (paths.METRICS, paths.EVALUATION, paths.PARAMS, paths.DVC_LOCK) if file.exists()],
        {"mor.dvc_lock": _lock_digest()},
    )
    return cached


def keep_files(run_id: str, files: Iterable[Path], tags: Mapping[str, str] | None = None) -> None:
    """Keep copies of files in a run's ``results`` folder, in place of older ones, and set its tags."""
    for file in files:
        mlflow_client().log_artifact(run_id, str(file), RESULTS)
    for name, value in (tags or {}).items():
        mlflow_client().set_tag(run_id, name, value)


def data_versions(lock: Mapping[str, Any], clients: Iterable[str]) -> dict[str, str]:
    """The version of each client's data, the public prompts and the evaluation sets that ``dvc.lock`` was made from.

    Eight hexadecimal digits of DVC's content digest, by the client's name, ``public`` and ``eval``.
    """
    folders = {paths.client_folder(client): client for client in clients} | {paths.PUBLIC: "public", paths.EVAL: "eval"}
    read = [dep for stage in (lock.get("stages") or {}).values() for dep in stage.get("deps", [])]
    found = {Path(dep["path"]): str(dep.get("md5", ""))[:8] for dep in read}
    return {name: found[folder] for folder, name in folders.items() if folder in found}


def prepare() -> None:
    """Make the store and the experiment now, before several processes do it at once."""
    _experiment()


def find_parent(execution: str) -> str | None:
    """Id of the newest parent run of that execution, if there is one."""
    found = search_runs(f"tags.`mor.execution` = '{execution}'")
    return str(found[0].info.run_id) if found else None


def open_parent(execution: str, name: str = "", tags: Mapping[str, str] | None = None) -> str:
    """Make a parent run for an execution of the pipeline, tagged with that; returns the run's id.

    It holds the settings that a result can depend on, and no others, so that runs differ only where something differs.
    """
    settings = load_params(paths.PARAMS)
    name = name or f"{settings.router.kind} seed {settings.seed}"
    own = _tags() | {"mor.execution": execution} | dict(tags or {})
    run = mlflow_client().create_run(_experiment(), tags=own, run_name=name)
    parent: str = run.info.run_id
    StageRun(parent, parent, "pipeline").params(telling(settings.model_dump()))
    return parent


def telling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, without those that cannot change a result and those that are not set."""
    return {
        name: value
        for name, value in dotted(settings).items()
        if value is not None and not {name, name.partition(".")[0]} & QUIET and not name.endswith(".shared_anchors")
    }


def stage_values(parent_id: str, stage: str) -> dict[str, float]:
    """The last metrics of a stage's newest run below that parent; empty if it has none."""
    run = _stage_run(parent_id, stage)
    return dict(run.data.metrics) if run else {}


def stage_address(parent_id: str, stage: str) -> str:
    """Address of the page that shows a stage's newest run, or the parent where there is none, in MLflow's user interface.

    ``MOR_MLFLOW_UI`` says where that answers, unless it is ``http://127.0.0.1:5000``.
    """
    return run_address(_stage_run(parent_id, stage) or mlflow_client().get_run(parent_id))


def run_address(run: Run) -> str:
    """Address of a run's page in MLflow's user interface."""
    return f"{interface()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def interface() -> str:
    """Where MLflow's user interface answers."""
    return os.environ.get(ADDRESS_VARIABLE, ADDRESS).rstrip("/")


def experiment() -> str:
    """Id of the experiment that all runs of this process belong to."""
    return _experiment()


def search_runs(query: str, *, deleted: bool = False) -> list[Run]:
    """The runs of the experiment that fit a query in MLflow's language, newest first; ``deleted`` adds those in the trash."""
    view, order = 3 if deleted else 1, ["attributes.start_time DESC"]  # MLflow's ViewType: ALL, ACTIVE_ONLY
    found: list[Run] = []
    token = None
    while token != "":
        page = mlflow_client().search_runs([_experiment()], query, view, order_by=order, page_token=token)
        found += page
        token = page.token or ""
    return found


def fetch_results(run_id: str, folder: Path) -> Path:
    """Copy an execution's results below ``folder``; returns where they lie, an empty folder if it has none."""
    if mlflow_client().list_artifacts(run_id, RESULTS):
        return Path(mlflow_client().download_artifacts(run_id, RESULTS, str(folder)))
    return folder


def read_lock() -> dict[str, Any]:
    """``dvc.lock``; empty where there is none."""
    return _yaml(paths.DVC_LOCK)


def close_parent(parent_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Set the parent's final status, and close the runs below it whose process was killed."""
    alive = _processes()
    for child in _children(parent_id):
        if child.info.status == "RUNNING" and child.data.tags.get("mor.process") not in alive:
            mlflow_client().set_terminated(child.info.run_id, "KILLED")
    mlflow_client().set_terminated(parent_id, status)


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
    parent = find_parent(execution) or open_parent(execution)
    mlflow_client().update_run(parent, status="RUNNING")
    with _closing(parent):
        yield parent


def _children(parent_id: str) -> list[Run]:
    return search_runs(f"tags.`mlflow.parentRunId` = '{parent_id}'")


def _stage_run(parent_id: str, stage: str) -> Run | None:
    """The newest run of a stage; its rounds have names of their own."""
    runs = [child for child in _children(parent_id) if child.info.run_name == paths.stage_name(stage)]
    return max(runs, key=lambda run: int(run.info.start_time), default=None)


def _counts(run: Run) -> bool:
    """Whether a stage's run is one that ended well, or this process's own; a killed one stays RUNNING."""
    return run.info.status == "FINISHED" or run.data.tags.get("mor.process") == _process_name(psutil.Process())


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
    created = mlflow_client().create_run(_experiment(), tags=_tags() | own | dict(tags), run_name=name)
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
            mlflow_client().set_tag(run_id, "mor.error", public_message(error)[:500])
            mlflow_client().set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    mlflow_client().set_terminated(run_id, "FINISHED")


@cache
def mlflow_client() -> MlflowClient:
    """The store's client, told to be quiet about migrations and copies."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a new store reports each of its migrations
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient()


@cache
def _experiment() -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = mlflow_client().get_experiment_by_name(name)
    return str(found.experiment_id if found else mlflow_client().create_experiment(name))


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

    held = mlflow_client().get_run(run_id).data.metrics
    now = int(time.time() * 1000)
    new = [Metric(name, float(value), now, 0) for name, value in values.items() if held.get(name) != float(value)]
    for start in range(0, len(new), 1000):
        mlflow_client().log_batch(run_id, metrics=new[start : start + 1000])


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
