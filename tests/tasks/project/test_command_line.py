"""What a user sees of a mistake, of a server that is away or refuses, and how many threads are used."""

from __future__ import annotations

import base64
import http.server
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mor.errors import ConfigError
from tasks.project import command_line

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_a_server_that_cannot_be_reached_is_said_and_worth_trying_again(run_python: Run) -> None:
    result = run_python("from tasks.project.command_line import main\nmain(print)", PREFECT_API_URL="http://127.0.0.1:9/api")
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
    settings_alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], login: str, message: str
) -> None:
    ran = []
    with http.server.HTTPServer(("127.0.0.1", 0), Locked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://me:mine@127.0.0.1:{server.server_port}/api")
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", login)
        with pytest.raises(SystemExit) as ended:
            command_line.main(lambda: ran.append(1))
        assert ended.value.code == 1
        said = capsys.readouterr().err
        assert f"PREFECT_API_URL=http://127.0.0.1:{server.server_port}/api" in said
        assert message in said
        assert "wrong" not in said
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "mor:right")
        command_line.main(lambda: ran.append(1))
        server.shutdown()
    assert ran == [1]


def test_wrong_setting_ends_in_one_message_and_exit_code_1(settings_alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = settings_alone / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: -1", 1))
    with pytest.raises(SystemExit) as exit_:
        command_line.main(lambda: None)
    said = capsys.readouterr().err
    assert exit_.value.code == 1
    assert "params.yaml: seed" in said
    assert "-1" in said
    assert "Traceback" not in said


def test_settings_errors_of_the_stage_itself_are_reported_the_same_way(
    settings_alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(name: str) -> None:
        raise ConfigError(f"clients.{name}: [no] such backbone")

    with pytest.raises(SystemExit):
        command_line.main(stage, "a")
    assert capsys.readouterr().err == "clients.a: [no] such backbone\n"


def test_other_errors_keep_their_traceback(settings_alone: Path) -> None:
    def stage() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        command_line.main(stage)


def test_threads_bound_torch_whether_it_is_imported_before_or_after(settings_alone: Path, run_python: Run) -> None:
    params = settings_alone / "params.yaml"
    params.write_text(params.read_text().replace("threads: 0", "threads: 1", 1))
    show = "main(lambda: print(__import__('torch').get_num_threads()))"
    for first in ("", "import torch\n"):
        code = f"{first}from tasks.project.command_line import main\n{show}"
        assert run_python(code, OMP_NUM_THREADS="2").stdout.strip() == "1"
