import http.server
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml

from mor.config import ConfigError, UserError
from tasks.project import guard, services
from tasks.project.services import Service

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".prefect").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that answers with the codes it is given, then with 200, and keeps what it got."""

    codes: list[int]
    got: list[dict[str, str]]
    location: str = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code = self.codes.pop(0) if self.codes else 200
        if code == 200:
            self.got.append(body)
        self.send_response(code)
        if code in (301, 302, 303, 307, 308):
            self.send_header("Location", self.location)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[tuple[str, type[Hook]]]:
    handler = type("OneHook", (Hook,), {"codes": [], "got": []})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", handler
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(claim: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := claim()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return held


def test_the_webhook_gets_the_event_as_json(hook: tuple[str, type[Hook]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, handler = hook
    monkeypatch.setenv("MOR_WEBHOOK", url)
    services.notify({"night": "2026-01-01", "state": "Promoted"})
    assert handler.got == [{"night": "2026-01-01", "state": "Promoted"}]


def test_a_webhook_that_fails_once_gets_the_event_once_all_the_same(
    hook: tuple[str, type[Hook]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = hook
    monkeypatch.setenv("MOR_WEBHOOK", url)
    handler.codes = [503]
    services.notify({"state": "Failed"})
    assert handler.got == [{"state": "Failed"}]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/secret", "https://127.0.0.1:{port}/secret"])
def test_a_webhook_that_is_not_there_is_warned_of_and_stops_nothing(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOR_WEBHOOK", url.format(port=free_port()))
    services.notify({"state": "Failed"})
    assert "Failed" in (said := capsys.readouterr().err)
    assert "secret" not in said


def test_without_a_webhook_nothing_is_sent_and_nothing_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MOR_WEBHOOK", raising=False)
    services.notify({"state": "Failed"})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "url",
    ["no url, secret", "http://[secret", "http://hooks.example/secret", "ftp://hooks.example/secret", "https:///secret",
     "http://127.0.0.1.example/secret", "http://localhost@hooks.example/secret", "file:///secret"],
)  # fmt: skip
def test_only_https_or_this_machine_is_told_and_the_address_is_not_repeated(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOR_WEBHOOK", url)
    with pytest.raises(ConfigError, match="MOR_WEBHOOK: expected an https://") as refused:
        services.webhook()
    services.notify({"state": "Failed"})
    assert "secret" not in f"{refused.value}{capsys.readouterr()}"


def test_the_address_of_a_webhook_that_refuses_is_in_no_message_and_no_log(
    hook: tuple[str, type[Hook]],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level(logging.INFO)
    logging.getLogger("httpx").setLevel(logging.NOTSET)
    url, handler = hook
    monkeypatch.setenv("MOR_WEBHOOK", f"{url}secret")
    handler.codes = [404]
    services.notify({"state": "Failed"})
    assert handler.codes == []
    assert handler.got == []  # it would not have been different the next time
    said = capsys.readouterr().err
    assert "did not take" in said
    assert "it answered with 404" in said
    assert "secret" not in said + caplog.text


def test_a_webhook_cannot_send_the_event_elsewhere(
    hook: tuple[str, type[Hook]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = hook
    handler.codes, handler.location = [307], url
    monkeypatch.setenv("MOR_WEBHOOK", url)
    services.notify({"state": "Failed"})
    assert handler.got == []
    assert "it answered with 307" in capsys.readouterr().err


def test_a_webhook_that_trickles_its_answer_is_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = threading.Event()

    def trickle(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not done.wait(0.2):  # never long enough for httpx's timeout between two pieces
                connection.sendall(b"X-More: 1\r\n")

    monkeypatch.setattr(services, "WEBHOOK_PATIENCE", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = threading.Thread(target=trickle, args=(listening,), daemon=True)
        sender.start()
        monkeypatch.setenv("MOR_WEBHOOK", f"http://127.0.0.1:{listening.getsockname()[1]}/")
        began = time.monotonic()
        services.notify({"state": "Failed"})
        assert time.monotonic() - began < 3
        done.set()
        sender.join(5)
    assert "no answer in 1 s" in capsys.readouterr().err


def test_an_endless_answer_is_not_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sent = []

    def pour(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.recv(65536)
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while len(sent) < 1000:
                connection.sendall(b"x" * 65536)
                sent.append(65536)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        sender = threading.Thread(target=pour, args=(listening,), daemon=True)
        sender.start()
        monkeypatch.setenv("MOR_WEBHOOK", f"http://127.0.0.1:{listening.getsockname()[1]}/")
        services.notify({"state": "Failed"})
        sender.join(10)
    assert len(sent) < 1000  # what the sockets' buffers hold, and not 64 MB
    assert capsys.readouterr().err == ""


def test_a_killed_service_is_started_again(folder: Path) -> None:
    service = Service("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], pause=0.1)
    with services.supervise([service]):
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
        assert eventually(lambda: services.look_after(service) or service.process is not None)  # type: ignore[func-returns-value]
        assert service.process is not None
        service.process.wait()
    services.look_after(service)
    assert service.pause == pytest.approx(0.08)  # 0.01 doubled by each of three ends
    assert service.process is None  # not due yet


def test_what_a_service_leaves_in_its_group_ends_with_it(folder: Path) -> None:
    child = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid, flush=True)"
    )
    service = Service("parent", [sys.executable, "-c", f"{child}\nimport time; time.sleep(60)"])
    with services.supervise([service]):
        assert eventually(lambda: service.log.exists() and service.log.read_text().endswith("\n"))
        pid = int(service.log.read_text())
    assert eventually(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())


def test_services_of_a_killed_supervisor_are_ended_and_no_others(folder: Path) -> None:
    service = Service("worker", [sys.executable, "-c", "import time; time.sleep(60)"])
    services.look_after(service)
    assert service.process is not None
    os.chdir(folder.parent)
    services.end_leftovers()
    assert service.process.poll() is None  # another folder's
    os.chdir(folder)
    services.end_leftovers()
    assert service.process.poll() is not None


def test_a_second_supervisor_in_the_same_folder_is_refused(folder: Path) -> None:
    with services.alone(), pytest.raises(UserError, match="runs in this folder already"), services.alone():
        pass
    with services.alone():
        pass


def test_a_taken_port_is_reported_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=r"taken by another program.*set PREFECT_API_URL"):
            services.listen(address, "set PREFECT_API_URL")
    services.listen(address, "").close()


def test_who_calls_while_the_server_is_started_again_waits_and_is_not_refused(folder: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    send = "await send({'type': 'http.response.start', 'status': 200}); await send({'type': 'http.response.body'})"
    (folder / "answer.py").write_text(f"async def app(scope, receive, send): {send}")
    with services.listen(address, "") as door:
        command = [sys.executable, "-m", "uvicorn", "--lifespan", "off", "--fd", str(door.fileno()), "answer:app"]
        service = Service("server", command, health=address, door=door)
        with services.supervise([service]):
            services.wait_for(service)
            assert service.process is not None
            service.process.kill()
            service.process.wait()
            assert httpx.get(address, timeout=20, trust_env=False).status_code == 200


def test_clients_wait_longer_than_a_restart_takes() -> None:
    retries = int(services.PREFECT["PREFECT_CLIENT_MAX_RETRIES"])
    pauses = sum(2**attempt for attempt in range(1, retries + 1))  # 2 + 4 + ... seconds, as Prefect's client waits
    assert pauses > 2 * (services.PATIENCE + services.PAUSES[1])


def test_every_prefect_setting_is_one_that_prefect_knows(folder: Path) -> None:
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = _get_settings_fields(Settings)
    given = services.PREFECT | guard.prefect_environment("http://127.0.0.1:4200")
    with guard.client_environment("http://127.0.0.1:4200"):
        given |= {name: value for name, value in os.environ.items() if name == guard.CLIENT_LOGIN}
    names = {name for name in given if name.startswith("PREFECT_") and not name.startswith("PREFECT__")}
    assert len(names) > 10
    assert names <= known.keys()


def test_the_deployment_names_a_flow_that_exists_and_the_workers_pool() -> None:
    described = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    (deployment,) = described["deployments"]
    file, _, name = deployment["entrypoint"].partition(":")
    assert f"\n{name} = " in (ROOT / file).read_text()
    assert deployment["work_pool"]["name"] == services.POOL
    assert deployment["concurrency_limit"]["limit"] == 1


def test_below_a_service_its_children_end_first_so_that_they_can_report(folder: Path) -> None:
    told = "import signal, sys, time; signal.signal(15, lambda *_: (print('{0}', flush=True), sys.exit())); {1}time.sleep(60)"
    child = told.format("child", "print('up', flush=True); ")
    parent = told.format("parent", f"import subprocess; subprocess.Popen([sys.executable, '-c', {child!r}]); ")
    service = Service("worker", [sys.executable, "-c", parent])
    with services.supervise([service]):
        assert eventually(lambda: service.log.exists() and service.log.read_text() == "up\n")
    assert service.log.read_text().split() == ["up", "child", "parent"]
