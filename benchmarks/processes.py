"""Jobs in processes of their own: each runs in its workspace, with its output in ``log.txt`` there.

A job can be killed at any time and goes on from its last checkpoint when it is run again.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from threading import Thread
from typing import Any

from benchmarks.workspace import LOG, ROOT, Workspace
from mor.config import Params
from tasks.tracking import runs as tracking

PROJECT = Path(__file__).resolve().parents[1]
ERROR = "error.txt"  # in a workspace: what ended its last job
PARENT_RUN = "mlflow_run"  # in a workspace: id of the parent of all its MLflow runs
PAUSE = 0.1  # seconds between two looks at the processes


@dataclass(frozen=True)
class Job:
    """A module's function for one process, called in ``workspace``; ``needs`` names the jobs to be done before."""

    name: str
    needs: tuple[str, ...]
    workspace: Workspace
    function: Callable[..., None]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job], at_once: int, done: Callable[[Job, int], None]) -> list[str]:
    """Run jobs as soon as what they need is there, ``at_once`` at a time, the first in the list first; returns the failures.

    ``done(job, left)`` is called after each. Whatever ends this call ends the processes too.
    """
    by_name = {job.name: job for job in jobs}
    order = list(by_name)
    sorter = TopologicalSorter({job.name: job.needs for job in jobs})
    sorter.prepare()
    ready: list[str] = []
    running: dict[str, Popen[bytes]] = {}
    failures: list[str] = []
    left = len(jobs)
    try:
        while True:
            ready = sorted([*ready, *sorter.get_ready()], key=order.index)
            while ready and len(running) < at_once:
                name = ready.pop(0)
                try:
                    running[name] = start(by_name[name])
                except OSError as failure:
                    failures.append(f"{name}: {type(failure).__name__}: {failure}")
            if not running:
                return failures
            for name, code in _wait(running).items():
                _end(running.pop(name))
                if code:
                    failures.append(_failure(by_name[name], code))
                else:
                    left -= 1
                    sorter.done(name)
                    done(by_name[name], left)
    finally:
        for process in running.values():
            _end(process)


def start(job: Job) -> Popen[bytes]:
    """Begin a job in its workspace, which is made first; raises ``OSError`` where that can't be."""
    job.workspace.prepare()
    folder = job.workspace.folder
    (folder / ERROR).unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    # -P: a workspace's own folders, such as data/, are no packages
    command = [sys.executable, "-P", "-c", f"from {__name__} import work; work()"]
    with (folder / LOG).open("ab") as log:
        process = Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, stdin=PIPE, stdout=log, stderr=STDOUT)
    assert process.stdin
    with suppress(BrokenPipeError):  # it has ended already, and its code tells
        name = folder.relative_to(ROOT.absolute()).as_posix()
        pickle.dump((name, job.workspace.params, job.function, job.arguments), process.stdin)
        process.stdin.flush()
    return process


def _wait(running: Mapping[str, Popen[bytes]]) -> dict[str, int]:
    """Exit codes of the processes that have ended, at least one."""
    while not (ended := {name: code for name, process in running.items() if (code := process.poll()) is not None}):
        time.sleep(PAUSE)
    return ended


def _failure(job: Job, code: int) -> str:
    error = job.workspace.folder / ERROR
    return f"{job.name}: {error.read_text() if error.exists() else f'ended with exit code {code}'}"


def _end(process: Popen[bytes]) -> None:
    with suppress(BrokenPipeError), process:  # closes the pipe and waits
        process.kill()


# --- in the job's process -----------------------------------------------------------------------------------------


def work() -> None:
    """Do the job that comes through stdin, in the folder that this process was started in."""
    name, params, function, arguments = pickle.load(sys.stdin.buffer)
    Thread(target=_end_with_parent, daemon=True).start()
    try:
        with _parent_run(name, params):
            function(*arguments)
    except Exception as error:
        Path(ERROR).write_text(f"{type(error).__name__}: {error}")
        raise


def _end_with_parent() -> None:
    """End this process when the one that holds stdin's other end ends, so that nothing writes where its next call begins."""
    while os.read(0, 1):  # not through sys.stdin, whose lock Python wants back when it ends
        pass
    os._exit(1)


@contextmanager
def _parent_run(name: str, params: Params) -> Iterator[None]:
    """The workspace's MLflow run above those of its stages; it stays open where the job does not end well."""
    run = Path(PARENT_RUN)
    if not run.exists():
        run.write_text(tracking.open_parent(f"benchmark {name}", params, name))
    os.environ[tracking.PARENT_VARIABLE] = run.read_text()
    yield
    tracking.close_parent(run.read_text(), "FINISHED")
