"""One night: take deliveries in, bring every stage up to date, judge the result, keep it.

A night is a series of steps that each can be repeated: ``.nights/current.json`` says which night is under way until it
has ended well, and a night that was killed goes on where it stopped. DVC decides what runs, MLflow's registry what serves.

===========  ===========================================================================================
ended        what happened
===========  ===========================================================================================
Unchanged    nothing was delivered that counts, and nothing was out of date
Held         deliveries drifted too far and wait for a person; nothing else had changed
Promoted     the candidate passed the gate and is the champion
Refused      the candidate did not; the champion stays
Failed       a step failed, and its error says why; the next night tries again
===========  ===========================================================================================
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar
from zoneinfo import ZoneInfo

import yaml
from rich.console import Console

from mor.config import Params, Unavailable, UserError, load_params
from mor.evaluation.gate import Verdict
from mor.files import write_whole
from mor.text import printable, public_message
from tasks.nights import ingest
from tasks.project import decorators, paths
from tasks.project.dvc import DVC, StageOutcome, outdated_stages, run_stage, stage_order
from tasks.project.processes import end_night_processes, hold_lock
from tasks.project.webhook import notify
from tasks.reports.night_page import Night, render_night
from tasks.tracking import registry, store, trial
from tasks.tracking import runs as tracking
from tasks.tracking.judging import judge_candidate
from tasks.tracking.open_run import StageRun
from tasks.tracking.packaging import register

T = TypeVar("T")
Ending = Literal["Unchanged", "Held", "Promoted", "Refused"]
CURRENT = paths.NIGHTS / "current.json"
# What a night's commit holds, besides the pointers to data that no stage makes.
KEPT = [paths.DVC_YAML, paths.DVC_LOCK, paths.PARAMS, paths.METRICS]
IDENTITY = ["-c", "user.name=MoR nightly", "-c", "user.email=nightly@localhost"]  # where git knows no other
PRIVATE = re.compile(r"\b(data|inbox|models)/|\.jsonl\b|'[^']*\.(png|jpe?g|webp|bmp)'", re.IGNORECASE)
console = Console(stderr=True)


@dataclass
class Course:
    """What a night has done so far."""

    night: str
    work: bool = False  # whether there is something to do; a restart keeps to it, as does the night after a failed one
    ending: str = ""
    message: str = ""
    deliveries: list[ingest.Delivery] = field(default_factory=list)  # as others may see them
    stages: list[StageOutcome] = field(default_factory=list)
    verdict: Verdict | None = None

    def save(self) -> None:
        write_whole(CURRENT, json.dumps({"night": self.night, "work": self.work, "failed": self.ending == "Failed"}))


def run_night(night: str | None = None) -> Course:
    """One whole night; its name is today's date unless given. Raises ``UserError`` if one is under way."""
    params = load_params(paths.PARAMS)
    with alone():
        end_night_processes()
        course = begin(params, night)
        _tell(course, "Running", "")
        try:
            follow(params, course)
        except Exception as error:
            course.ending, course.message = "Failed", public_message(error)
            _finish(params, course)
            raise
        _finish(params, course)
    return course


@contextmanager
def alone() -> Iterator[None]:
    """Hold the project's lock; raises ``UserError`` where another night has it."""
    paths.NIGHTS.mkdir(exist_ok=True)
    with hold_lock(paths.NIGHTS / "lock", "another night is under way in this folder; wait for its end"):
        yield


def begin(params: Params, night: str | None) -> Course:
    """The night that was cut off, or else a new one, which does what a failed one left undone."""
    left: dict[str, Any] = json.loads(CURRENT.read_text()) if CURRENT.exists() else {"failed": True, "work": False}
    if not left["failed"]:
        console.print(f"Going on with night {left['night']}, which was cut off")
        return Course(left["night"], left["work"])
    course = Course(night or _new_name(params), left["work"])
    course.save()
    return course


def follow(params: Params, course: Course) -> None:
    """The steps, in order."""
    step("settle", registry.restore_aliases)
    course.deliveries = [found.shared(params.clients) for found in step("ingest", ingest.ingest, params, course.night)]
    step("version", version_clients, params)
    held = [f"{d.client}: {d.name}: {'; '.join(d.reasons)}" for d in course.deliveries if d.state == "held"]
    if not course.work:
        stale = outdated_stages()
        taken = any(delivery.state == "merged" and delivery.accepted for delivery in course.deliveries)
        course.work = stale != [] or taken or not registry.is_judged(params.gate)
        course.save()
    if not course.work:
        course.ending = "Held" if held else "Unchanged"
        course.message = "\n".join(held) or _quiet(course)
        return
    os.environ[tracking.PARENT_VARIABLE] = run_id = _run_of(course, params)
    try:
        _train(params, course, run_id)
    finally:
        os.environ.pop(tracking.PARENT_VARIABLE, None)
    course.message = "\n".join(filter(None, [course.message, *(f"held: {text}" for text in held)]))


def _run_of(course: Course, params: Params) -> str:
    """The night's MLflow run, made when first asked for."""
    execution = f"night {course.night}"
    return tracking.find_parent(execution) or tracking.open_parent(execution, params, execution, {"mor.night": course.night})


def _train(params: Params, course: Course, run_id: str) -> None:
    """Stages, registry and gate, all recorded below the night's MLflow run."""
    for stage in stage_order():
        course.stages.append(_stage_step(params, stage, run_id))
    step("record", tracking.reconcile, run_id, params)
    candidate = step("register", register, course.night, run_id, params)
    verdict = step("gate", judge_candidate, candidate, params)
    verdict = step("try", trial.try_candidate, candidate, verdict, params.gate)
    step("promote", registry.promote, candidate, verdict, params.gate)
    course.verdict = verdict
    course.ending = "Promoted" if verdict.passed else "Refused"
    course.message = "" if verdict.passed else "; ".join(verdict.reasons)


def _stage_step(params: Params, stage: str, run_id: str) -> StageOutcome:
    """One stage as a visible step, tried again where something was unavailable."""
    settings, outcomes = params.nightly, []
    limit = settings.time_limits.get(stage) or settings.time_limits.get(stage.partition("@")[0]) or settings.time_limit

    def run_and_show() -> Any:
        outcomes.append(run_stage(stage, limit, _watcher(stage)))
        console.print(f"{outcomes[-1].state:<10}{stage:<20}{outcomes[-1].seconds:8.1f} s", highlight=False)
        return _show(outcomes[-1], run_id)

    step(f"stage {stage}", run_and_show, retry=params)
    return outcomes[-1]


def _show(outcome: StageOutcome, run_id: str) -> Any:
    """A Prefect state that bears the outcome's name, with the stage's metrics and MLflow run; None without Prefect."""
    if not _in_prefect():
        return None
    from prefect.artifacts import create_link_artifact, create_table_artifact
    from prefect.states import Completed

    values = tracking.stage_values(run_id, outcome.stage) or _recorded(outcome.stage)
    rows = [{"metric": name, "value": f"{value:.4g}"} for name, value in sorted(values.items())]
    key = _key(outcome.stage)
    create_table_artifact(rows or [{"metric": "none", "value": ""}], key=f"{key}-metrics", description=outcome.stage)
    if outcome.state == "Ran":
        create_link_artifact(tracking.stage_address(run_id, outcome.stage), "run in MLflow", key=f"{key}-mlflow")
    return Completed(name=outcome.state, message=f"{outcome.state} in {outcome.seconds:.1f} s")


def _key(stage: str) -> str:
    """The stage's name as Prefect's artifacts may be called."""
    return "".join(letter if letter.isalnum() else "-" for letter in stage)


def _watcher(stage: str) -> Callable[[Mapping[str, Any]], None]:
    """What shows a training's progress in Prefect, if that is there."""
    shown: list[Any] = []  # the progress artifact, once there is one

    def watch(progress: Mapping[str, Any]) -> None:
        if not _in_prefect():
            return
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        share = 100 * progress["step"] / max(1, progress["steps"])
        figures = ", ".join(f"{name} {value}" for name, value in progress["figures"].items())
        text = f"step {progress['step']} of {progress['steps']}: {figures}"
        if shown:
            update_progress_artifact(shown[0], share, text)
        else:
            shown.append(create_progress_artifact(share, key=f"{_key(stage)}-progress", description=text))

    return watch


def _recorded(stage: str) -> dict[str, float]:
    """The metrics that a stage left behind when it last ran."""
    path = paths.stage_metrics(stage)
    return {name: value for name, value in json.loads(path.read_text()).items() if value is not None} if path.exists() else {}


def _in_prefect() -> bool:
    """Whether a Prefect task run is going on around the caller."""
    if not os.environ.get("PREFECT_API_URL"):
        return False
    from prefect.context import TaskRunContext

    return TaskRunContext.get() is not None


def step(name: str, function: Callable[..., T], *arguments: Any, retry: Params | None = None) -> T:
    """Call ``function`` as a Prefect task of that name where there is a server.

    With ``retry`` an ``Unavailable`` is tried again with growing pauses.
    """
    options: dict[str, Any] = {"name": name, "task_run_name": name}
    if retry is not None:
        delays = [retry.nightly.retry_delay * 2**n for n in range(retry.nightly.retries)]
        worth: Callable[..., bool] = lambda task, run, state: isinstance(state.result(raise_on_failure=False), Unavailable)  # noqa: E731
        options |= {"retries": len(delays), "retry_delay_seconds": delays, "retry_condition_fn": worth}
    decorated: Callable[..., T] = decorators.task(**options)(function)
    return decorated(*arguments)


# --- keeping -----------------------------------------------------------------------------------------------------------


def _finish(params: Params, course: Course) -> None:
    """Write the page, commit and push what the night has made, tell how it ended; then it is over."""
    try:
        if course.work or course.deliveries:
            step("report", write_night, params, course)
        if course.ending != "Failed" and (course.work or course.deliveries):
            step("keep", keep, course)
            if params.nightly.push:
                step("push", push, params, course.night, retry=params)
    except Exception as error:
        if course.ending != "Failed":
            _tell(course, "Failed", public_message(error))
            raise
        console.print(public_message(error), style="red", markup=False, highlight=False)
    _tell(course, course.ending, course.message)
    if course.ending == "Failed":
        course.save()
    else:
        CURRENT.unlink(missing_ok=True)


def version_clients(params: Params) -> None:
    """``dvc add`` the data of clients that no stage makes; before any stage looks, whose dependency holds the pointers too."""
    stages = yaml.safe_load(paths.DVC_YAML.read_text())["stages"].values()
    made = {next(iter(out)) if isinstance(out, dict) else out for stage in stages for out in stage.get("outs", [])}
    _add(path for path in map(paths.client_folder, params.clients) if path.exists() and str(path) not in made)


def _add(folders: Iterable[Path]) -> None:
    """Version folders with DVC, which leaves the files in place as they are; a kill can't take one away."""
    if names := list(map(str, folders)):
        _command([*DVC, "add", "--quiet", "--no-relink", *names])


def keep(course: Course) -> None:
    """Version the archive and commit the night's state as ``night/<name>``; where there is no git, only the first."""
    if paths.ARCHIVE.exists():
        _add([paths.ARCHIVE])
    if not Path(".git").exists():
        return
    pointers = [*paths.DATA.glob("*.dvc"), *paths.CLIENTS.glob("*.dvc")]
    _command(["git", "add", "--", *(str(path) for path in (*KEPT, *pointers) if path.exists())])
    identity = [] if _command(["git", "config", "user.email"], check=False) else IDENTITY
    if _command(["git", "status", "--porcelain", "--untracked-files=no"]):
        title = f"Night {course.night}: {course.ending.lower()}"
        _command(["git", *identity, "commit", "--quiet", "--no-verify", "-m", f"{title}\n\n{course.message}".strip()])
    _command(["git", *identity, "tag", "--force", "-m", course.ending, f"night/{course.night}"])


def push(params: Params, night: str) -> None:
    """Data, models and run cache to the DVC remote, commit and tag to ``nightly.git_remote``; those that are set."""
    if _command([*DVC, "remote", "list"]):
        _command([*DVC, "push", "--quiet", "--run-cache"], error=Unavailable)
    if params.nightly.git_remote:
        _command(["git", "push", "--quiet", params.nightly.git_remote, "HEAD", f"night/{night}"], error=Unavailable)


def _command(command: list[str], *, check: bool = True, error: type[UserError] = UserError) -> str:
    """A command's output; raises ``error`` with what it printed where it fails, but for lines that may name clients' files."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        open_ones = [line for line in said if not PRIVATE.search(line)]
        hidden = ["(what it said of clients' files is left out here; run it by hand)"] * (len(open_ones) < len(said))
        raise error(f"{' '.join(command)} failed: {printable(chr(10).join([*open_ones, *hidden])[-1000:], None, lines=True)}")
    return done.stdout.strip()


def write_night(params: Params, course: Course) -> None:
    """``reports/night.json`` and ``reports/night.html``, also kept in the night's MLflow run."""
    described = Night(
        night=course.night, ending=course.ending, message=course.message,
        deliveries=[delivery.model_dump() for delivery in course.deliveries],
        stages=[asdict(stage) for stage in course.stages],
        verdict=None if course.verdict is None else asdict(course.verdict),
        metrics=json.loads(paths.METRICS.read_text()) if paths.METRICS.exists() else {},
    )  # fmt: skip
    paths.NIGHT.parent.mkdir(exist_ok=True)
    paths.NIGHT.write_text(described.model_dump_json(indent=1) + "\n")
    paths.NIGHT_REPORT.write_text(render_night(described, ingest.drift_picture(course.deliveries)), encoding="utf-8")
    run_id = _run_of(course, params)
    run = StageRun(run_id, run_id, "night")
    run.headline(_figures(course))
    tags = {"mor.ended": course.ending, "mor.message": course.message[:500]}
    store.keep_files(run_id, [paths.NIGHT, paths.NIGHT_REPORT], tags)
    tracking.close_parent(run_id, "FAILED" if course.ending == "Failed" else "FINISHED")


def _figures(course: Course) -> dict[str, float]:
    """What of a night is worth comparing with other nights, under the names that it has every night."""
    figures: dict[str, float] = {}
    for delivery in course.deliveries:
        if delivery.client == ingest.NOBODY:
            continue
        for name in ("accepted", "duplicates", "quarantined"):
            key = f"ingest.{delivery.client}.{name}"
            figures[key] = figures.get(key, 0.0) + getattr(delivery, name)
        for finding in delivery.drift:
            figures[f"drift.{delivery.client}.{finding.name}"] = finding.statistic
    for check in course.verdict.checks if course.verdict else ():
        figures[f"gate.{check.name}"] = check.value
    return figures


def _quiet(course: Course) -> str:
    """What to say of a night without work."""
    if course.deliveries:
        return "nothing new: " + "; ".join(f"{d.client}: {d.name}: {', '.join(d.reasons)}" for d in course.deliveries)
    return "nothing was delivered and nothing is out of date"


def _new_name(params: Params) -> str:
    """Today's date, numbered from the second night of a day on."""
    today = datetime.now(ZoneInfo(params.nightly.timezone)).date().isoformat()
    taken = set(_command(["git", "tag", "--list", f"night/{today}*"], check=False).splitlines())
    taken |= {f"night/{delivery.night}" for delivery in ingest.deliveries()}
    names = (today, *(f"{today}.{number}" for number in range(2, 1000)))
    return next(name for name in names if f"night/{name}" not in taken)


def _tell(course: Course, state: str, message: str) -> None:
    """The state on the terminal and to the webhook."""
    colour = {"Failed": "red", "Refused": "yellow", "Held": "yellow"}.get(state, "green")
    console.print(f"Night {course.night}: {state}", style=colour, end="" if message else "\n", markup=False, highlight=False)
    if message:
        console.print(f": {printable(message, None, lines=True)}", markup=False, highlight=False)
    notify({"night": course.night, "state": state, "message": message})
