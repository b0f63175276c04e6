import http.server
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from mor.config import UserError
from tasks import services
from tasks.services import Service

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".prefect").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Hook(http.server.BaseHTTPRequestHandler):
    """A webhook that answers with the codes it is given, then with 200, and keeps what it got."""

    codes: list[int]
    got: list[dict[str, str]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        code = self.codes.pop(0) if self.codes else 200
        if code == 200:
            self.got.append(body)
        self.send_response(code)
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


def test_the_webhook_gets_the_event_as_json(hook: tuple[str, type[Hook]]) -> None:
    url, handler = hook
    services.notify(url, {"night": "2026-01-01", "state": "Promoted"})
    assert handler.got == [{"night": "2026-01-01", "state": "Promoted"}]


def test_a_webhook_that_fails_once_gets_the_event_once_all_the_same(hook: tuple[str, type[Hook]]) -> None:
    url, handler = hook
    handler.codes = [503]
    services.notify(url, {"state": "Failed"})
    assert handler.got == [{"state": "Failed"}]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "no url at all", "http://[", ""])
def test_a_webhook_that_is_not_there_is_warned_of_and_stops_nothing(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    services.notify(url.format(port=free_port()), {"state": "Failed"})
    assert "Failed" in capsys.readouterr().err


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


def test_every_prefect_setting_is_one_that_prefect_knows() -> None:
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = _get_settings_fields(Settings)
    assert {name for name in services.PREFECT if name.startswith("PREFECT_")} <= known.keys()


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
