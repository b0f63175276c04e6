"""``dvc repro`` as the pipeline starts it, on a project of two stages, and a real Prefect server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tasks import execution
from tasks.execution import StageFailed, outdated_stages, prefect_server, reproduce

ROOT = Path(__file__).parents[2]
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
    code = "from tasks.execution import reproduce\ntry: reproduce()\nexcept KeyboardInterrupt: raise SystemExit(130)"
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
    command = [sys.executable, "-m", "flows.pipeline"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "up to date" in done.stderr
    assert not (project / ".prefect").exists()
    assert not (project / "mlflow.db").exists()


def test_server_answers_inside_the_block_and_is_gone_after(project: Path) -> None:
    with prefect_server() as address:
        assert os.environ["PREFECT_API_URL"] == f"{address}/api"
        assert httpx.get(f"{address}/api/health").json() is True
    assert "PREFECT_API_URL" not in os.environ
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/api/health")


def test_server_of_the_users_own_is_used_as_it_is(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    with prefect_server() as address:
        assert address == "http://prefect.example"
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"


def test_work_goes_on_without_a_server_that_cannot_start(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "SERVER", [sys.executable, "-c", "raise SystemExit(1)"])
    with prefect_server() as address:
        assert address is None
        assert "PREFECT_API_URL" not in os.environ
