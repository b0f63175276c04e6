"""DVC: which stages are out of date, and ``dvc repro``, whole or a stage at a time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from mor.errors import TRY_AGAIN, Unavailable
from tasks.project import paths
from tasks.project.command_line import ERROR_VARIABLE
from tasks.project.processes import NIGHT_VARIABLE, end_night_processes

DVC = [sys.executable, "-m", "dvc"]
POLL = 0.5  # seconds
StageState = Literal["Ran", "Restored", "Unchanged"]  # Restored: the same inputs ran before, their results came from the cache


class StageFailed(RuntimeError):
    """``dvc repro`` stopped; ``code`` is its exit code. Its text says what the stage told of its error, and no output."""

    public = True  # see mor.text.public_message

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(reason or f"dvc repro ended with exit code {code}")
        self.code = code


class StageUnavailable(StageFailed, Unavailable):
    """The stage needs something that did not answer; it is worth trying again."""


class StageTimedOut(StageFailed):
    """The stage took longer than it may; what it had checkpointed is kept."""


@dataclass(frozen=True)
class StageOutcome:
    """What DVC did about a stage, and how long that took."""

    stage: str
    state: StageState
    seconds: float


def stage_order() -> list[str]:
    """The stages of ``dvc.yaml`` that are not frozen, each after those that it depends on."""
    import networkx
    from dvc.repo import Repo

    with Repo(".") as repo:
        graph = repo.index.graph  # edges go from a stage to what it needs
        ordered = networkx.lexicographical_topological_sort(graph.reverse(), key=lambda stage: stage.addressing)
        return [stage.addressing for stage in ordered if not (stage.is_data_source or stage.frozen)]


def run_stage(stage: str, time_limit: float, watch: Callable[[dict[str, Any]], None] = lambda progress: None) -> StageOutcome:
    """``dvc repro`` of one stage, whose dependencies are up to date; its output goes to ``.nights/<stage>.log``.

    ``watch`` gets what the training's progress file holds (step, steps, figures) whenever that changes. Raises
    ``StageFailed`` with what the stage told of its error (its output may hold anything and stays in the log),
    ``StageUnavailable`` where the stage asks to be tried again, and ``StageTimedOut`` after ``time_limit`` seconds.
    """
    paths.NIGHTS.mkdir(exist_ok=True)
    log, progress, error = (paths.NIGHTS / f"{paths.stage_name(stage)}.{kind}" for kind in ("log", "progress", "error"))
    for left in (progress, error):
        left.unlink(missing_ok=True)
    marks = {NIGHT_VARIABLE: str(Path.cwd()), "MOR_PROGRESS": str(progress.resolve()), ERROR_VARIABLE: str(error.resolve())}
    began = time.monotonic()
    with log.open("w") as output:
        command = [*DVC, "--wait-for-lock", "repro", "--single-item", stage]
        dvc = subprocess.Popen(command, env=_environment() | marks, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = _wait(dvc, began + time_limit, progress, watch)
        except BaseException:
            end_night_processes()
            raise
    if code is None:
        raise StageTimedOut(1, f"{stage} took longer than {time_limit:g} s (nightly.time_limits); its log is {log}")
    said = log.read_text(errors="replace")
    if code:
        kind = StageUnavailable if re.search(rf"exited with {TRY_AGAIN}\b", said) else StageFailed
        reason = error.read_text(encoding="utf-8") if error.exists() else "it says no more"
        raise kind(code, f"{stage} failed: {reason}; its log is {log}")
    state: StageState = "Ran" if "Running stage" in said else "Unchanged"
    return StageOutcome(stage, "Restored" if "is cached - skipping run" in said else state, time.monotonic() - began)


def _wait(dvc: subprocess.Popen[bytes], deadline: float, progress: Path, watch: Callable[[dict[str, Any]], None]) -> int | None:
    """DVC's exit code, or None if it had to be ended at the deadline."""
    seen = 0.0
    while True:
        with suppress(subprocess.TimeoutExpired):
            return dvc.wait(POLL)
        if time.monotonic() > deadline:
            end_night_processes()
            dvc.wait()
            return None
        if progress.exists() and (changed := progress.stat().st_mtime) != seen:
            seen = changed
            watch(json.loads(progress.read_text()))


def outdated_stages() -> list[str] | None:
    """Stages whose own inputs, code, settings or results changed, by ``dvc status``; None where it can't tell (locked).

    Data that a night adds itself (``*.dvc``) is no stage.
    """
    result = subprocess.run([*DVC, "status", "--json"], check=False, capture_output=True, text=True, env=_environment())
    if result.returncode:
        return None
    changed: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return [name for name in changed if not name.endswith(".dvc")]


def reproduce(arguments: Sequence[str] = ()) -> None:
    """Run ``dvc repro``, its output going straight to the terminal; raises ``StageFailed``, or ``KeyboardInterrupt``.

    Ctrl-C reaches every process in the terminal's group by itself: the stage ends, DVC tidies up, and this process waits
    for both. A SIGTERM, which reaches this process alone, is passed on to DVC and its stage as the same interrupt.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM and dvc:
            with suppress(psutil.Error):
                process = psutil.Process(dvc.pid)
                for member in (*process.children(recursive=True), process):
                    member.send_signal(signal.SIGINT)

    dvc: subprocess.Popen[bytes] | None = None
    # Set before DVC starts: a shell's background job is born deaf to SIGINT, and DVC would inherit that.
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        dvc = subprocess.Popen([*DVC, "--wait-for-lock", "repro", *arguments], env=_environment())
        code = dvc.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
    if code:
        raise StageFailed(code)


def _environment() -> dict[str, str]:
    """This process's environment, with its own ``python`` found first and without telemetry."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
