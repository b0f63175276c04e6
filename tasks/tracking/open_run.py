"""A run that is open: what a stage records while it goes on, and how the run ends.

No ambient run: every call names its run, because MLflow drops ``MLFLOW_RUN_ID`` at first use and trainers may start
runs of their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from mor.files import digest
from mor.text import public_message
from tasks.tracking.store import experiment, mlflow_client

FLUSH = 200  # metrics held back before they go to the store in one batch
METRICS, PARAMS = 1000, 100  # that MLflow takes at once


@dataclass
class StageRun:
    """A run that is open. Metrics are held back and written in batches, for the SQLite store is slow to commit."""

    run_id: str
    parent_id: str
    stage: str
    tags: Mapping[str, str] = field(default_factory=dict)  # of its children too
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
        for start in range(0, len(self._pending), METRICS):
            mlflow_client().log_batch(self.run_id, metrics=self._pending[start : start + METRICS])
        self._pending.clear()

    def params(self, values: Mapping[str, Any]) -> None:
        """Record settings, nested ones under dotted names."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)) for name, value in dotted(values).items()]
        for start in range(0, len(entries), PARAMS):
            mlflow_client().log_batch(self.run_id, params=entries[start : start + PARAMS])

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
        """Record metrics on the parent run, where executions are compared; those that it holds already add no points."""
        held = mlflow_client().get_run(self.parent_id).data.metrics
        parent = StageRun(self.parent_id, self.parent_id, self.stage)
        parent.metrics({name: value for name, value in values.items() if held.get(name) != float(value)})
        parent.flush()

    @contextmanager
    def child(self, name: str, params: Mapping[str, Any] | None = None) -> Iterator[StageRun]:
        """A further child of the *parent*, such as ``align round 1``; its metrics stay out of the stage's file."""
        with open_child(self.parent_id, name, self.stage, params or {}, self.tags) as run:
            yield run


@contextmanager
def open_child(parent: str, name: str, stage: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[StageRun]:
    """A run below ``parent``, closed at the end of the block."""
    own = {"mlflow.parentRunId": parent, "mor.stage": stage, "mor.process": process_name(psutil.Process())}
    created = mlflow_client().create_run(experiment(), tags={**own, **tags}, run_name=name)
    run = StageRun(created.info.run_id, parent, stage, tags)
    with closing(run.run_id, run.flush):
        run.params(params)
        yield run


@contextmanager
def closing(run_id: str, flush: Callable[[], None] = lambda: None) -> Iterator[None]:
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


def process_name(process: psutil.Process) -> str:
    """What tells a process from all others, also from one that had the same number before."""
    return f"{process.pid}@{process.create_time():.2f}"


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names: ``{"a": {"b": 1}}`` -> ``{"a.b": 1}``; pydantic models count as mappings."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        value = value.model_dump() if isinstance(value, BaseModel) else value
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
