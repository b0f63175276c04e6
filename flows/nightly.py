"""One night (`mor nightly` schedules it): what clients delivered is taken in, what is out of date trained, judged and kept.

A night that was killed goes on where it stopped when it is run again. Its name becomes a git tag, a file's and an MLflow run's.

It ends as one of

- Unchanged: nothing was delivered that counts, and nothing was out of date
- Held: deliveries drifted too far and wait for a person; nothing else had changed
- Promoted: the candidate passed the gate and is the champion
- Refused: the candidate did not; the champion stays
- Failed: a step failed, and its error says why; the next night tries again
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mor.config import Gate, Params, load_params
from mor.errors import UserError
from mor.text import public_message
from tasks.project import decorators, paths

if TYPE_CHECKING:
    from tasks.nights.journal import NightState

# --- the order of a night ------------------------------------------------------------------------------------------------
#
# Every step can be repeated: the journal (.nights/current.json) says which night is under way until it has ended well, DVC
# decides which stages run, and MLflow's registry knows what serves.


def run_night(name: str | None = None) -> NightState:
    """One whole night; its name is today's date unless given. Raises ``UserError`` if one is under way."""
    from tasks.nights.journal import begin, night_lock
    from tasks.project.processes import end_night_processes

    params = load_params(paths.PARAMS)
    with night_lock():
        end_night_processes()  # of a night that was killed
        night = begin(name, params.nightly.timezone)  # that night, if there is one
        night.announce("Running", "")
        try:
            bring_up_to_date(night, params)
        except Exception as error:
            night.ending, night.message = "Failed", public_message(error)
            finish(night, params)
            raise
        finish(night, params)
    return night


def bring_up_to_date(night: NightState, params: Params) -> None:
    """Take deliveries in; if they, the settings or the code give reason to, make a candidate and judge it."""
    from tasks.nights.git import version_clients
    from tasks.nights.intake import take_in_all
    from tasks.nights.steps import step
    from tasks.tracking import registry

    step("settle", registry.restore_aliases)  # a kill may have come between a promotion's aliases
    found = step("ingest", take_in_all, params, night.name)
    night.deliveries = [delivery.public_view(params.clients) for delivery in found]
    step("version", version_clients, params.clients)
    if has_work(night, params.gate):
        make_and_judge(night, params)
    else:
        night.end_without_work()


def has_work(night: NightState, gate: Gate) -> bool:
    """Whether there is something to train or to judge; noted in the journal."""
    from tasks.project.dvc import outdated_stages
    from tasks.tracking import registry

    if not night.work:  # decided before it was cut off, or left by one that failed
        stale = outdated_stages()
        night.work = stale != [] or night.has_new_rows or not registry.is_judged(gate)
        night.save()
    return night.work


def make_and_judge(night: NightState, params: Params) -> None:
    """Every stage, then the candidate's way through registry, gate and trial; all recorded below the night's MLflow run."""
    from tasks.nights.record import recorded_run
    from tasks.nights.steps import stage_step, step
    from tasks.project.dvc import stage_order
    from tasks.tracking import registry, trial
    from tasks.tracking.judging import judge_candidate
    from tasks.tracking.packaging import register
    from tasks.tracking.runs import reconcile

    with recorded_run(night.name, params) as run_id:
        for stage in stage_order():
            night.stages.append(stage_step(stage, params.nightly, run_id))
        step("record", reconcile, run_id, params)
        candidate = step("register", register, night.name, run_id, params)
        verdict = step("gate", judge_candidate, candidate, params)
        verdict = step("try", trial.try_candidate, candidate, verdict, params.gate)
        step("promote", registry.promote, candidate, verdict, params.gate)
    night.end_with(verdict)


def finish(night: NightState, params: Params) -> None:
    """Write the page, commit and push what the night has made, tell how it ended; then it is over."""
    from tasks.nights.git import keep, push
    from tasks.nights.record import write_night
    from tasks.nights.steps import console, step

    try:
        if night.work or night.deliveries:
            step("report", write_night, night, params)
            if night.ending != "Failed":
                step("keep", keep, night.name, night.ending, night.message)
                if params.nightly.push:
                    step("push", push, night.name, params.nightly.git_remote, retry=params.nightly)
    except Exception as error:
        if night.ending != "Failed":  # the next run goes on with this night
            night.announce("Failed", public_message(error))
            raise
        console.print(public_message(error), style="red", markup=False, highlight=False)
    night.close()


# --- as a Prefect flow and a command --------------------------------------------------------------------------------------

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
    ended = run_night(checked(night))
    if not os.environ.get("PREFECT_API_URL"):
        return None
    from prefect.states import Completed

    return Completed(name=ended.ending, message=ended.message or None)


def _name() -> str:
    """What Prefect shows: the night, if the run was given one."""
    from prefect.runtime import flow_run

    return f"night {flow_run.parameters.get('night') or format(flow_run.scheduled_start_time, '%Y-%m-%d %H:%M')}"


def _report(flow: Any, run: Any, state: Any) -> None:
    """Tell the webhook of an end that the night itself could not report."""
    from tasks.project.webhook import notify

    notify({"night": str((run.parameters or {}).get("night") or ""), "state": state.name, "message": state.message or ""})


OPTIONS: dict[str, Any] = {"name": "nightly", "flow_run_name": _name, "validate_parameters": False}
OPTIONS |= {"on_crashed": [_report], "on_cancellation": [_report]}
nightly = decorators.flow(**OPTIONS)(_night)


def _argument(night: str | None) -> str | None:
    try:
        return checked(night)
    except UserError as error:
        raise typer.BadParameter(str(error)) from None


def night(
    name: Annotated[
        str | None,
        typer.Argument(metavar="night", help="its name; today's date if left out", show_default=False, callback=_argument),
    ] = None,
) -> None:
    """A night with a Prefect server of its own, unless ``PREFECT_API_URL`` names one."""
    from tasks.project.dvc import StageFailed
    from tasks.project.servers import temporary_prefect

    with temporary_prefect():
        try:
            decorators.flow(**OPTIONS)(_night)(name)
        except StageFailed:
            sys.exit(1)  # the night has said why
