"""One night, now (`mor nightly` schedules them); it ends as `tasks/nights/night.py` lists.

A night that was killed goes on where it stopped when it is run again. Its name becomes a git tag, a file's and an MLflow run's.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated, Any

import typer

from mor.config import UserError
from tasks.project import decorators

NAME = r"(?!.*\.\.)[0-9A-Za-z][0-9A-Za-z._-]{0,63}(?<![.])(?<!\.lock)"  # what git, too, takes for a tag


def checked(night: str | None) -> str | None:
    """The night's name; raises ``UserError`` where it can be none."""
    if night is not None and not re.fullmatch(NAME, night):
        raise UserError(
            f"{night!r} can't name a night: expected up to 64 letters, digits, '.', '_' and '-', such as 2026-01-02, "
            "the first a letter or a digit, without '..' and not ending with '.' or '.lock'"
        )
    return night


def _night(night: str | None = None) -> Any:
    """Ingest, train what is stale, judge, promote or refuse; ``night`` names it, today's date if left out."""
    checked(night)
    from tasks.nights.night import run_night

    course = run_night(night)
    if not os.environ.get("PREFECT_API_URL"):
        return None
    from prefect.states import Completed

    return Completed(name=course.ending, message=course.message or None)


def _name() -> str:
    """What Prefect shows: the night, if the run was given one."""
    from prefect.runtime import flow_run

    return f"night {flow_run.parameters.get('night') or format(flow_run.scheduled_start_time, '%Y-%m-%d %H:%M')}"


def _report(flow: Any, run: Any, state: Any) -> None:
    """Tell the webhook of an end that the night itself could not report."""
    from tasks.project.webhook import notify

    notify({"night": str((run.parameters or {}).get("night") or ""), "state": state.name, "message": state.message or ""})


OPTIONS: dict[str, Any] = {
    "name": "nightly",
    "flow_run_name": _name,
    "on_crashed": [_report],
    "on_cancellation": [_report],
    "validate_parameters": False,
}
nightly = decorators.flow(**OPTIONS)(_night)


def _argument(night: str | None) -> str | None:
    try:
        return checked(night)
    except UserError as error:
        raise typer.BadParameter(str(error)) from None


def run(
    night: Annotated[
        str | None, typer.Argument(help="its name; today's date if left out", show_default=False, callback=_argument)
    ] = None,
) -> None:
    """A night with a Prefect server of its own, unless ``PREFECT_API_URL`` names one."""
    from tasks.project.dvc import StageFailed
    from tasks.project.servers import temporary_prefect

    with temporary_prefect():
        try:
            decorators.flow(**OPTIONS)(_night)(night)
        except StageFailed:
            sys.exit(1)  # the night has said why
