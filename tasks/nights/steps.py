"""The steps of a night as Prefect shows them: tasks with retries, stages with their progress, metrics and MLflow runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rich.console import Console

from mor.config import Nightly
from mor.errors import Unavailable
from mor.files import read_json
from tasks.project import decorators, paths
from tasks.project.dvc import StageOutcome, run_stage
from tasks.tracking import runs as tracking

T = TypeVar("T")
console = Console(stderr=True)


def step(name: str, function: Callable[..., T], *arguments: Any, retry: Nightly | None = None) -> T:
    """Call ``function`` as a Prefect task of that name where there is a server.

    With ``retry`` an ``Unavailable`` is tried again with growing pauses.
    """
    options: dict[str, Any] = {"name": name, "task_run_name": name}
    if retry is not None:
        delays = [retry.retry_delay * 2**n for n in range(retry.retries)]
        options |= {"retries": len(delays), "retry_delay_seconds": delays, "retry_condition_fn": _may_pass}
    return decorators.task(**options)(function)(*arguments)


def _may_pass(task: Any, run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), Unavailable)


def stage_step(stage: str, settings: Nightly, run_id: str) -> StageOutcome:
    """One stage as a visible step, tried again where something was unavailable."""
    outcomes = []
    limit = settings.time_limits.get(stage) or settings.time_limits.get(stage.partition("@")[0]) or settings.time_limit

    def run_and_show() -> Any:
        outcomes.append(run_stage(stage, limit, _progress_watcher(stage)))
        console.print(f"{outcomes[-1].state:<10}{stage:<20}{outcomes[-1].seconds:8.1f} s", highlight=False)
        return _prefect_state(outcomes[-1], run_id)

    step(f"stage {stage}", run_and_show, retry=settings)
    return outcomes[-1]


def _prefect_state(outcome: StageOutcome, run_id: str) -> Any:
    """A Prefect state that bears the outcome's name, with the stage's metrics and MLflow run; None without Prefect."""
    if not _in_prefect():
        return None
    from prefect.artifacts import create_link_artifact, create_table_artifact
    from prefect.states import Completed

    values = tracking.stage_values(run_id, outcome.stage) or read_json(paths.stage_metrics(outcome.stage))
    rows = [{"metric": name, "value": f"{value:.4g}"} for name, value in sorted(values.items()) if value is not None]
    key = _artifact_key(outcome.stage)
    create_table_artifact(rows or [{"metric": "none", "value": ""}], key=f"{key}-metrics", description=outcome.stage)
    if outcome.state == "Ran":
        create_link_artifact(tracking.stage_address(run_id, outcome.stage), "run in MLflow", key=f"{key}-mlflow")
    return Completed(name=outcome.state, message=f"{outcome.state} in {outcome.seconds:.1f} s")


def _artifact_key(stage: str) -> str:
    """The stage's name as Prefect's artifacts may be called."""
    return "".join(letter if letter.isalnum() else "-" for letter in stage)


def _progress_watcher(stage: str) -> Callable[[Mapping[str, Any]], None]:
    """What shows a training's progress in Prefect, if that is there."""
    artifacts: list[Any] = []  # the progress artifact, once there is one

    def watch(progress: Mapping[str, Any]) -> None:
        if not _in_prefect():
            return
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        share = 100 * progress["step"] / max(1, progress["steps"])
        figures = ", ".join(f"{name} {value}" for name, value in progress["figures"].items())
        text = f"step {progress['step']} of {progress['steps']}: {figures}"
        if artifacts:
            update_progress_artifact(artifacts[0], share, text)
        else:
            artifacts.append(create_progress_artifact(share, key=f"{_artifact_key(stage)}-progress", description=text))

    return watch


def _in_prefect() -> bool:
    """Whether a Prefect task run is going on around the caller."""
    if not os.environ.get("PREFECT_API_URL"):
        return False
    from prefect.context import TaskRunContext

    return TaskRunContext.get() is not None
