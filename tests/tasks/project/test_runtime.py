"""Stages with and without a Prefect server, and what a user sees of a mistake."""

from __future__ import annotations

import base64
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mor.config import ConfigError
from tasks.project import runtime

ROOT = Path(__file__).parents[3]

STAGE = """
import sys
from tasks.project.runtime import flow, main, task

@task(retries=2)
def double(x: int) -> int:
    return 2 * x

@flow(name="stage")
def stage(x: int) -> None:
    print(double(x))

"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=variables)


def test_stage_without_a_server_runs_and_never_imports_prefect_mlflow_or_torch(project: Path) -> None:
    slow = "print(sorted({'prefect', 'mlflow', 'torch', 'transformers'} & set(sys.modules)))"
    result = run_python(f"{STAGE}main(stage, 21)\n{slow}")
    assert result.stdout.split("\n")[:2] == ["42", "[]"], result.stderr


def test_with_a_server_the_decorators_are_prefects_and_keep_no_results(project: Path) -> None:
    check = "print(type(stage).__name__, type(double).__name__, double.retries, stage.persist_result, double.persist_result)"
    result = run_python(STAGE + check, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert result.stdout.strip() == "Flow Task 2 False False", result.stderr


def test_a_server_that_cannot_be_reached_is_said_and_worth_trying_again(project: Path) -> None:
    result = run_python(f"{STAGE}main(stage, 21)", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert result.returncode == 75
    assert "no Prefect server answers there" in result.stderr
    assert "Traceback" not in result.stderr


class Locked(http.server.BaseHTTPRequestHandler):
    """A Prefect server that asks for ``mor:right``."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic " + base64.b64encode(b"mor:right").decode()
        self.send_response(200 if known or self.path == "/api/health" else 401)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.parametrize(
    ("login", "message"),
    [("", "refuses to be used without a login"), ("mor:wrong", "refuses the login of PREFECT_API_AUTH_STRING")],
)
def test_a_server_that_wants_another_login_is_said_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], login: str, message: str
) -> None:
    ran = []
    with http.server.HTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://me:mine@127.0.0.1:{server.server_port}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", login)
        with pytest.raises(SystemExit) as ended:
            runtime.main(lambda: ran.append(1))
        assert ended.value.code == 1
        said = capsys.readouterr().err
        assert f"PREFECT_API_URL=http://127.0.0.1:{server.server_port}/api" in said
        assert message in said
        assert "wrong" not in said
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "mor:right")
        runtime.main(lambda: ran.append(1))
        server.shutdown()
    assert ran == [1]


def test_decorators_hand_back_the_function_itself() -> None:
    def function() -> int:
        return 1

    assert runtime.flow(function) is function
    assert runtime.task(retries=3)(function) is function


def test_wrong_setting_ends_in_one_message_and_exit_code_1(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: -1", 1))
    with pytest.raises(SystemExit) as exit_:
        runtime.main(lambda: None)
    said = capsys.readouterr().err
    assert exit_.value.code == 1
    assert "params.yaml: seed" in said
    assert "-1" in said
    assert "Traceback" not in said


def test_settings_errors_of_the_stage_itself_are_reported_the_same_way(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(name: str) -> None:
        raise ConfigError(f"clients.{name}: [no] such backbone")

    with pytest.raises(SystemExit):
        runtime.main(stage, "a")
    assert capsys.readouterr().err == "clients.a: [no] such backbone\n"


def test_other_errors_keep_their_traceback(project: Path) -> None:
    def stage() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        runtime.main(stage)


def test_threads_bound_torch_whether_it_is_imported_before_or_after(project: Path) -> None:
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("threads: 0", "threads: 1", 1))
    show = "main(lambda: print(__import__('torch').get_num_threads()))"
    for first in ("", "import torch\n"):
        code = f"{first}from tasks.project.runtime import main\n{show}"
        assert run_python(code, OMP_NUM_THREADS="2").stdout.strip() == "1"
