"""Running the pipeline: what is out of date, ``dvc repro`` whole or a stage at a time, and a Prefect server for it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import httpx
import psutil

from mor.config import TRY_AGAIN, Unavailable
from tasks.project import guard, paths
from tasks.project.runtime import ERROR_VARIABLE

SERVER_PATIENCE = 60.0  # seconds for the server to come up; a new database takes most of it
DVC = [sys.executable, "-m", "dvc"]


class StageFailed(RuntimeError):
    """``dvc repro`` stopped; ``code`` is its exit code. Its text says what the stage told of its error, and no output."""

    public = True  # see mor.text.told

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
    state: Literal["Ran", "Restored", "Unchanged"]  # Restored: the same inputs ran before, their results came from the cache
    seconds: float


# What `dvc repro` says of a stage. Anything else that ends well left it as it was.
_SAYINGS: list[tuple[str, Literal["Ran", "Restored"]]] = [("is cached - skipping run", "Restored"), ("Running stage", "Ran")]
OWNER_VARIABLE = "MOR_NIGHT_OF"  # marks the processes of a project's night, so that what a killed one left can be found
POLL = 0.5  # seconds


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
    marks = {OWNER_VARIABLE: str(Path.cwd()), "MOR_PROGRESS": str(progress.resolve()), ERROR_VARIABLE: str(error.resolve())}
    began = time.monotonic()
    with log.open("w") as output:
        command = [*DVC, "--wait-for-lock", "repro", "--single-item", stage]
        dvc = subprocess.Popen(command, env=_environment() | marks, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = _wait(dvc, began + time_limit, progress, watch)
        except BaseException:
            end_leftovers()
            raise
    text = log.read_text(errors="replace")
    if code is None:
        raise StageTimedOut(1, f"{stage} took longer than {time_limit:g} s (nightly.time_limits); its log is {log}")
    if code:
        kind = StageUnavailable if re.search(rf"exited with {TRY_AGAIN}\b", text) else StageFailed
        reason = error.read_text(encoding="utf-8") if error.exists() else "it says no more"
        raise kind(code, f"{stage} failed: {reason}; its log is {log}")
    state = next((state for saying, state in _SAYINGS if saying in text), "Unchanged")
    return StageOutcome(stage, state, time.monotonic() - began)  # type: ignore[arg-type]


def _wait(dvc: subprocess.Popen[bytes], deadline: float, progress: Path, watch: Callable[[dict[str, Any]], None]) -> int | None:
    """DVC's exit code, or None if it had to be ended at the deadline."""
    seen = 0.0
    while True:
        with suppress(subprocess.TimeoutExpired):
            return dvc.wait(POLL)
        if time.monotonic() > deadline:
            end_leftovers()
            dvc.wait()
            return None
        if progress.exists() and (changed := progress.stat().st_mtime) != seen:
            seen = changed
            watch(json.loads(progress.read_text()))


def end_leftovers() -> None:
    """End what a night of this project has started and not ended: DVC, its stages and their workers."""
    mine = psutil.Process()
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(OWNER_VARIABLE) == str(Path.cwd()) and process != mine:
                found.append(process)
    for number, patience in ((signal.SIGINT, 10), (signal.SIGKILL, 10)):
        for process in found:
            with suppress(psutil.Error):
                process.send_signal(number)
        _, found = psutil.wait_procs(found, patience)


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


@contextmanager
def prefect_server() -> Iterator[str | None]:
    """A Prefect server for the time of the block, its history in ``.prefect``; gives its address, or None if it won't start.

    Within the block ``PREFECT_API_URL`` and the login are set, so that flows of this process and of those below it register
    there. A server that the variable names already is used as it is, with the user's own ``PREFECT_API_AUTH_STRING``.
    """
    if own := os.environ.get("PREFECT_API_URL"):
        yield own.removesuffix("/api")
        return
    with socket.create_server(("127.0.0.1", 0)) as door:  # ours from the start: nobody can take the port in between
        address = f"http://127.0.0.1:{door.getsockname()[1]}"
        with (guard.home() / "server.log").open("w") as log:
            server = subprocess.Popen(
                [*guard.PREFECT, "--fd", str(door.fileno())],
                env=_environment() | guard.prefect_environment(address),
                pass_fds=[door.fileno()],
                stdout=log,
                stderr=log,
                start_new_session=True,  # it outlives a Ctrl-C until the stages have reported their end
            )
    try:
        if not _healthy(f"{address}/api/health", server):
            yield None
            return
        with guard.client_environment(address):
            yield address
    finally:
        _stop(server)


def _healthy(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; False if it ended or took too long."""
    deadline = time.monotonic() + SERVER_PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK:
                return True
        time.sleep(0.2)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it started: politely, then after 10 s by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)
            return


def _environment() -> dict[str, str]:
    """This process's environment, with its own ``python`` found first and without telemetry."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
