"""Jobs in processes: a failure stops only what needs it, and nothing outlives the one who asked for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import processes
from benchmarks.processes import Job, run_jobs
from benchmarks.workspace import Workspace, workspace_folder
from mor.config import load_params

ROOT = Path(__file__).parents[2]
PARAMS = load_params(ROOT / "params.yaml")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose jobs find ``tests`` too, and record no runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "sitecustomize.py").write_text(
        "from contextlib import nullcontext\nfrom benchmarks import processes\n"
        "processes._parent_run = lambda *_: nullcontext()\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path / "helpers")]))


def write(text: str) -> None:
    print(f"writing in {Path.cwd().name}")
    Path("written").write_text(text)


def fail() -> None:
    raise ValueError("no reason\nin two lines")


def vanish() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def go_on_writing() -> None:
    while True:
        Path("beat").write_text(str(time.time()))
        time.sleep(0.02)


def job(name: str, function: Callable[..., None], *arguments: Any, needs: tuple[str, ...] = ()) -> Job:
    # functions of this module under the name that a fresh process imports it by
    import tests.benchmarks.test_processes as module

    workspace = Workspace(workspace_folder(name), PARAMS, "key")
    return Job(name, needs, workspace, getattr(module, function.__name__), arguments)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} never came"
        time.sleep(0.02)


def test_a_job_works_in_its_workspace_and_logs_there(tmp_path: Path) -> None:
    finished: list[tuple[str, int]] = []
    jobs = [job("one", write, "1"), job("two", write, "2", needs=("one",))]
    assert run_jobs(jobs, 2, lambda job, left: finished.append((job.name, left))) == []
    assert finished == [("one", 1), ("two", 0)]
    assert (tmp_path / ".benchmark/two/written").read_text() == "2"
    assert (tmp_path / ".benchmark/two/log.txt").read_text() == "writing in two\n"


def test_a_failure_is_told_and_stops_only_what_needs_it(tmp_path: Path) -> None:
    finished: list[str] = []
    jobs = [
        job("bad", fail), job("after", write, "", needs=("bad",)), job("killed", vanish), job("other", write, ""),
    ]  # fmt: skip
    failures = run_jobs(jobs, 2, lambda job, _: finished.append(job.name))
    assert sorted(failures) == ["bad: ValueError: no reason\nin two lines", "killed: ended with exit code -9"]
    assert finished == ["other"]
    assert "Traceback" in (tmp_path / ".benchmark/bad/log.txt").read_text()
    assert not (tmp_path / ".benchmark/after").exists()


def test_a_workspace_that_cannot_be_made_is_a_failure_like_any_other(tmp_path: Path) -> None:
    (tmp_path / ".benchmark").mkdir()
    (tmp_path / ".benchmark/blocked").touch()
    (failure,) = run_jobs([job("blocked", write, ""), job("other", write, "")], 1, lambda *_: None)
    assert failure.startswith("blocked: ")


def test_what_ends_the_call_ends_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beat = tmp_path / ".benchmark/busy/beat"

    def interrupted(running: dict[str, subprocess.Popen[bytes]]) -> dict[str, int]:
        wait_for(beat)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_jobs([job("busy", go_on_writing)], 1, lambda *_: None)
    last = beat.read_text()
    time.sleep(0.3)
    assert beat.read_text() == last


def test_a_killed_parent_leaves_no_job_behind(tmp_path: Path) -> None:
    code = (
        "from tests.benchmarks.test_processes import go_on_writing, job\nfrom benchmarks.processes import run_jobs\n"
        "run_jobs([job('busy', go_on_writing), job('busy too', go_on_writing)], 2, lambda *_: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    beats = [tmp_path / ".benchmark" / name / "beat" for name in ("busy", "busy too")]
    try:
        for beat in beats:
            wait_for(beat)
        children = psutil.Process(parent.pid).children(recursive=True)
    finally:
        parent.kill()
        parent.wait()
    assert len(children) == 2
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_the_run_of_a_workspace_is_opened_once_and_closed_where_the_job_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(processes.tracking, "open_parent", lambda title, _, name: told.append(("open", title, name)) or "r1")
    monkeypatch.setattr(processes.tracking, "close_parent", lambda *words: told.append(("close", *words)))
    monkeypatch.setenv("MOR_PARENT_RUN_ID", "")
    with pytest.raises(ValueError, match="unlucky"), processes._parent_run("default-0/mor", PARAMS):
        raise ValueError("unlucky")
    with processes._parent_run("default-0/mor", PARAMS):
        assert os.environ["MOR_PARENT_RUN_ID"] == "r1"
    assert told == [("open", "benchmark default-0/mor", "default-0/mor"), ("close", "r1", "FINISHED")]
