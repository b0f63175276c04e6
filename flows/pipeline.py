"""The whole chain: ``python -m flows.pipeline`` (``make run``). Arguments go to ``dvc repro``, such as ``--force validate``.

DVC decides what runs. Around it go one Prefect server, in which every stage shows up, and one MLflow parent run. When
nothing is out of date neither is started: only the table of the last results is shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich.console import Console

from mor.config import load_params
from tasks import runtime, tracking
from tasks.execution import StageFailed, outdated_stages, prefect_server, reproduce
from tasks.summary import show_results

console = Console(stderr=True)


def pipeline(arguments: Sequence[str] = ()) -> None:
    """Bring every stage up to date and show the results."""
    load_params()  # a mistake in the settings is reported before anything starts
    outdated = None if arguments else outdated_stages()
    if outdated == []:
        console.print("[green]Everything is up to date.[/] The results of the last run:")
    else:
        if outdated:
            console.print(f"Out of date: {', '.join(outdated)}")
        with prefect_server() as address:
            if address is None:
                console.print("[yellow]No Prefect server: .prefect/server.log says why. Going on without it.[/]")
            else:
                console.print(f"Prefect: {address} (while this runs)")
            runtime.flow(name="pipeline", flow_run_name="pipeline")(execute)(list(arguments))
    show_results()


def execute(arguments: list[str]) -> None:
    """``dvc repro`` inside an MLflow parent run, which ends up with a child for every stage, run or skipped."""
    parent = tracking.open_parent(f"pipeline {os.getpid()}")
    os.environ[tracking.PARENT_VARIABLE] = parent
    try:
        reproduce(arguments)
    except StageFailed:
        console.print("[red]A stage failed; its message is above.[/] Finished stages are kept: mend it and run again.")
        tracking.close_parent(parent, "FAILED")
        raise
    except KeyboardInterrupt:
        console.print("[yellow]Stopped.[/] Run again to go on from the last checkpoint.")
        tracking.close_parent(parent, "KILLED")
        raise
    tracking.reconcile(parent)
    tracking.close_parent(parent, "FINISHED")


def run(arguments: Sequence[str]) -> int:
    """The pipeline's exit code: 0, or DVC's own after a failure; an interrupted one ends with 130."""
    try:
        runtime.main(pipeline, arguments)
    except StageFailed as failure:
        return failure.code
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
