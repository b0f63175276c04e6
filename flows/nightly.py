"""One night: ``python -m flows.nightly`` (``make nightly`` schedules it); ends as ``tasks.night`` lists.

A night that was killed goes on where it stopped when it is run again.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from mor.config import load_params
from tasks import runtime
from tasks.execution import StageFailed, prefect_server
from tasks.night import run_night
from tasks.services import notify


def _night(night: str | None = None) -> Any:
    """Ingest, train what is stale, judge, promote or refuse; ``night`` names it, today's date if left out."""
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
    if address := load_params().nightly.webhook:
        notify(
            address,
            {"night": str((run.parameters or {}).get("night") or ""), "state": state.name, "message": state.message or ""},
        )


OPTIONS: dict[str, Any] = {
    "name": "nightly",
    "flow_run_name": _name,
    "on_crashed": [_report],
    "on_cancellation": [_report],
    "validate_parameters": False,
}
nightly = runtime.flow(**OPTIONS)(_night)


def run(night: str | None = None) -> None:
    """A night with a Prefect server of its own, unless ``PREFECT_API_URL`` names one."""
    with prefect_server():
        try:
            runtime.flow(**OPTIONS)(_night)(night)
        except StageFailed:
            sys.exit(1)  # the night has said why


if __name__ == "__main__":
    runtime.main(run, sys.argv[1] if len(sys.argv) > 1 else None)
