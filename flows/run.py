"""The whole chain. Further words go to `dvc repro`, such as `--force validate`.

DVC decides what runs. Around it go one Prefect server, in which every stage shows up, and one MLflow parent run. When
nothing is out of date neither is started: only the table of the last results is shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from mor.config import load_params
from tasks.project import command_line, decorators

console = Console(stderr=True)


def command_settings() -> dict[str, Any]:
    """For the command line: options that it does not know are DVC's to refuse."""
    return {"context_settings": {"ignore_unknown_options": True}}


def pipeline(arguments: Sequence[str] = ()) -> None:
    """Bring every stage up to date and show the results."""
    from tasks.project.dvc import outdated_stages
    from tasks.project.guard import login_hint
    from tasks.project.servers import temporary_prefect
    from tasks.reports.console import show_results

    load_params()  # a mistake in the settings is reported before anything starts
    outdated = None if arguments else outdated_stages()
    if outdated == []:
        console.print("[green]Everything is up to date.[/] The results of the last run:")
    else:
        if outdated:
            console.print(f"Out of date: {', '.join(outdated)}")
        theirs = os.environ.get("PREFECT_API_URL")
        with temporary_prefect() as address:
            if address is None:
                console.print("[yellow]No Prefect server: .prefect/server.log says why. Going on without it.[/]")
            else:
                said = "while this runs" if theirs else f"while this runs; login {login_hint()}"
                console.print(f"Prefect: {command_line.without_login(address)} ({said})", highlight=False, soft_wrap=True)
            decorators.flow(name="pipeline", flow_run_name="pipeline")(execute)(list(arguments))
    show_results()


def execute(arguments: list[str]) -> None:
    """``dvc repro`` inside an MLflow parent run, which ends up with a child for every stage, run or skipped."""
    from tasks.project.dvc import StageFailed, reproduce
    from tasks.tracking import runs as tracking

    params = load_params()
    parent = tracking.open_parent(f"pipeline {os.getpid()}", params)
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
    tracking.reconcile(parent, params)
    tracking.close_parent(parent, "FINISHED")


def run(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="WORDS", help="for `dvc repro`", show_default=False)] = None,
) -> None:
    """The pipeline; ends with DVC's own code after a failure."""
    from tasks.project.dvc import StageFailed

    try:
        pipeline(arguments or [])
    except StageFailed as failure:
        sys.exit(failure.code)
