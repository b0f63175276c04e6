"""``dvc repro`` as the pipeline starts it, on a project of two stages."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.project.dvc import (
    StageFailed,
    StageTimedOut,
    StageUnavailable,
    outdated_stages,
    reproduce,
    run_stage,
    stage_order,
)

ROOT = Path(__file__).parents[3]
STAGES = """
stages:
  first:
    cmd: echo -n 1 > a
    outs: [a]
  second:
    cmd: python second.py
    deps: [a, second.py]
    outs: [b]
"""
PATIENT = """
import time
try:
    open("started", "w")
    time.sleep(60)
except KeyboardInterrupt:
    open("told", "w")
    raise SystemExit(1)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text((ROOT / ".dvc" / "config").read_text() + "    no_scm = true\n")
    (tmp_path / "dvc.yaml").write_text(STAGES)
    (tmp_path / "second.py").write_text("open('b','w').write(open('a').read() + '2')")
    return tmp_path


def test_stages_are_outdated_until_they_ran_and_again_after_a_change_of_code(project: Path) -> None:
    assert outdated_stages() == ["first", "second"]
    reproduce()
    assert (project / "b").read_text() == "12"
    assert outdated_stages() == []
    (project / "second.py").write_text("open('b','w').write('3')")
    assert outdated_stages() == ["second"]


def test_failed_stage_raises_and_finished_ones_are_kept(project: Path) -> None:
    (project / "second.py").write_text("raise SystemExit(3)")
    with pytest.raises(StageFailed):
        reproduce()
    assert outdated_stages() == ["second"]


def test_termination_interrupts_the_stage_and_leaves_the_project_ready_for_the_next_run(project: Path) -> None:
    (project / "second.py").write_text(PATIENT)
    code = "from tasks.project.dvc import reproduce\ntry: reproduce()\nexcept KeyboardInterrupt: raise SystemExit(130)"
    running = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not (project / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 130
    assert (project / "told").exists()
    assert outdated_stages() == ["second"]


def test_pipeline_with_nothing_to_do_starts_no_server_and_makes_no_run(project: Path) -> None:
    shutil.copy(ROOT / "params.yaml", project)
    reproduce()
    command = [sys.executable, "-m", "flows.cli", "run"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "up to date" in done.stderr
    assert not (project / ".prefect").exists()
    assert not (project / "mlflow.db").exists()


def test_stages_are_ordered_by_what_they_need_and_frozen_ones_left_out(project: Path) -> None:
    text = STAGES.replace("stages:\n", "stages:\n  zero: {frozen: true, cmd: 'echo 0 > z', outs: [z]}\n")
    (project / "dvc.yaml").write_text(text.replace("  first:", "  later:").replace("  second:", "  earlier:"))
    assert stage_order() == ["later", "earlier"]  # not by name: "earlier" needs what "later" makes


def test_a_stage_runs_then_is_unchanged_then_comes_back_from_the_cache(project: Path) -> None:
    run_stage("first", 60)
    code = (project / "second.py").read_text()
    assert run_stage("second", 60).state == "Ran"
    assert run_stage("second", 60).state == "Unchanged"
    (project / "second.py").write_text("open('b', 'w').write('other')")
    assert run_stage("second", 60).state == "Ran"
    (project / "second.py").write_text(code)
    assert run_stage("second", 60).state == "Restored"
    assert (project / "b").read_text() == "12"


def test_a_failure_tells_its_end_and_whether_it_is_worth_another_try(project: Path) -> None:
    run_stage("first", 60)
    word = "import os; open(os.environ['MOR_ERROR'], 'w').write('the reason')"  # as tasks.project.command_line.main leaves it
    (project / "second.py").write_text(f"{word}; print('its output'); raise SystemExit(1)")
    with pytest.raises(StageFailed, match=r"second failed: the reason; its log is .nights/second.log") as failed:
        run_stage("second", 60)
    assert "its output" not in str(failed.value)
    assert "its output" in Path(".nights/second.log").read_text()
    assert not isinstance(failed.value, StageUnavailable)
    (project / "second.py").write_text("raise SystemExit(75)")
    with pytest.raises(StageUnavailable):
        run_stage("second", 60)


def test_a_stage_is_ended_at_its_time_limit_with_all_that_it_started(project: Path) -> None:
    run_stage("first", 60)
    (project / "second.py").write_text(PATIENT)
    with pytest.raises(StageTimedOut, match="second took longer than 10 s"):
        run_stage("second", 10)
    assert (project / "told").exists() == (project / "started").exists()  # a slow machine may not have come so far
    assert outdated_stages() == ["second"]


def test_progress_that_a_stage_writes_reaches_the_watcher(project: Path) -> None:
    run_stage("first", 60)
    code = "import os, time; open(os.environ['MOR_PROGRESS'], 'w').write('{\"step\": 1}'); time.sleep(2); open('b', 'w')"
    (project / "second.py").write_text(code)
    seen: list[object] = []
    run_stage("second", 60, seen.append)
    assert seen == [{"step": 1}]
