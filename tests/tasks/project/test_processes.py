"""Locks, services that are started again, and the end of what killed ones leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mor.errors import UserError
from tasks.project import processes
from tasks.project.processes import Service


def eventually(claim: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := claim()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def test_a_lock_is_held_by_one_and_goes_with_its_holder(folder: Path) -> None:
    file = folder / "lock"
    with (
        processes.hold_lock(file, "no"),
        pytest.raises(UserError, match="lock: one is enough"),
        processes.hold_lock(file, "one is enough"),
    ):
        pass
    with processes.hold_lock(file, "one is enough"):
        pass


def test_a_killed_service_is_started_again(folder: Path) -> None:
    service = Service("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], pause=0.1)
    with processes.supervise([service]):
        assert eventually(lambda: service.process is not None)
        first = service.process
        assert first is not None
        first.kill()
        assert eventually(lambda: service.process not in (None, first))
        second = service.process
        assert second is not None
        assert second.poll() is None
    assert second.poll() is not None


def test_each_failure_doubles_the_pause_before_the_next_start(folder: Path) -> None:
    service = Service("broken", [sys.executable, "-c", ""], pause=0.01)
    for _ in range(3):
        assert eventually(lambda: processes.look_after(service) or service.process is not None)  # type: ignore[func-returns-value]
        assert service.process is not None
        service.process.wait()
    processes.look_after(service)
    assert service.pause == pytest.approx(0.08)  # 0.01 doubled by each of three ends
    assert service.process is None  # not due yet


def test_what_a_service_leaves_in_its_group_ends_with_it(folder: Path) -> None:
    child = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)"
    )
    service = Service("parent", [sys.executable, "-c", f"{child}\nimport time; time.sleep(60)"])
    with processes.supervise([service]):
        assert eventually(lambda: service.log.exists() and service.log.read_text().endswith("\n"))
        pid = int(service.log.read_text())
    assert eventually(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())


def test_services_of_a_killed_supervisor_are_ended_and_no_others(folder: Path) -> None:
    service = Service("worker", [sys.executable, "-c", "import time; time.sleep(60)"])
    processes.look_after(service)
    assert service.process is not None
    os.chdir(folder.parent)
    processes.end_services()
    assert service.process.poll() is None  # another folder's
    os.chdir(folder)
    processes.end_services()
    assert service.process.poll() is not None


def test_below_a_service_its_children_end_first_so_that_they_can_report(folder: Path) -> None:
    told = "import signal, sys, time; signal.signal(15, lambda *_: (print('{0}', flush=True), sys.exit())); {1}time.sleep(60)"
    child = told.format("child", "print('up', flush=True); ")
    parent = told.format("parent", f"import subprocess; subprocess.Popen([sys.executable, '-c', {child!r}]); ")
    service = Service("worker", [sys.executable, "-c", parent])
    with processes.supervise([service]):
        assert eventually(lambda: service.log.exists() and service.log.read_text() == "up\n")
    assert service.log.read_text().split() == ["up", "child", "parent"]


def test_leftovers_of_this_project_are_ended_and_others_are_not(folder: Path) -> None:
    def start(owner: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["sleep", "60"], env=os.environ | {processes.NIGHT_VARIABLE: owner})

    mine, other = start(str(Path.cwd())), start("/elsewhere")
    try:
        processes.end_night_processes()
        assert mine.poll() is not None
        assert other.poll() is None
    finally:
        mine.wait()
        other.kill()
        other.wait()
