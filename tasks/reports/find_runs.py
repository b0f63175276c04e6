"""Executions of the pipeline that MLflow holds, by the names that people give them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mor.errors import UserError
from tasks.tracking import store

if TYPE_CHECKING:
    from mlflow.entities import Run

LISTED = 8  # runs that a message names
PREFIX = 4  # letters of a run's id, at least, that stand for it


def find_run(name: str) -> Run:
    """The execution that ``name`` means; raises ``UserError`` where none or several fit."""
    runs = executions()
    nights = [run for run in runs if run.data.tags.get("mor.night") == name.removeprefix("night ").removeprefix("night/")]
    if nights:
        return nights[0]  # the newest
    if found := _parent_of(name):
        return found
    starting = [run for run in runs if len(name) >= PREFIX and run.info.run_id.startswith(name)]
    fitting = starting or [run for run in runs if run.info.run_name == name]
    if len(fitting) == 1:
        return fitting[0]
    several = f"{len(fitting)} runs fit {name!r}; name one by its id"
    said = several if fitting else f"no run {name!r}: give a night, an id or a name"
    lines = [f"  {run.info.run_id[:8]}  {began(run)}  {run.info.run_name}" for run in (fitting or runs)[: LISTED + 1]]
    listed = "\n".join([*lines[:LISTED], *["  ..."] * (len(lines) > LISTED)]) or "  none; make run makes one"
    raise UserError(f"{said}. There are:\n{listed}")


def last_two(second: str | None = None) -> tuple[Run, Run]:
    """The last two executions that ended well, older first, nights if there are two; or ``second`` and the one before it."""
    ended = [run for run in executions() if run.info.status == "FINISHED"]
    nights = [run for run in ended if "mor.night" in run.data.tags]
    runs = nights if len(nights) > 1 else ended
    if second:
        later = find_run(second)
        runs = [later, *(run for run in runs if run.info.start_time < later.info.start_time)]
    if len(runs) > 1:
        return runs[1], runs[0]
    raise UserError(f"two finished runs are needed to compare, and there are {len(runs)}: run the pipeline again (mor run)")


def executions() -> list[Run]:
    """Every execution of the pipeline, newest first."""
    found = store.search_runs("tags.`mor.execution` != ''")
    return sorted(found, key=lambda run: int(run.info.start_time), reverse=True)


def _parent_of(run_id: str) -> Run | None:
    """The run with that whole id, or the execution that it is a stage of."""
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        return None
    found = store.search_runs(f"attributes.run_id = '{run_id}'")
    parent = found[0].data.tags.get("mlflow.parentRunId") if found else None
    return _parent_of(parent) if parent else (found[0] if found else None)


def began(run: Run) -> str:
    """When it did, in UTC."""
    return f"{datetime.fromtimestamp(run.info.start_time / 1000, UTC):%Y-%m-%d %H:%M}"
