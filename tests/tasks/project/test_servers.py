"""Prefect's and MLflow's servers: their ports, their restarts, their settings, and a real one for a single run."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from mor.errors import UserError
from tasks.project import guard, processes, servers
from tasks.project.processes import Service

ROOT = Path(__file__).parents[3]


def test_a_second_supervisor_in_the_same_folder_is_refused(folder: Path) -> None:
    with servers.only_supervisor(), pytest.raises(UserError, match="runs in this folder already"), servers.only_supervisor():
        pass
    with servers.only_supervisor():
        pass


def test_a_taken_port_is_reported_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=r"taken by another program.*set PREFECT_API_URL"):
            servers.listen(address, "set PREFECT_API_URL")
    servers.listen(address, "").close()


def test_who_calls_while_the_server_is_started_again_waits_and_is_not_refused(folder: Path, free_port: int) -> None:
    address = f"http://127.0.0.1:{free_port}"
    send = "await send({'type': 'http.response.start', 'status': 200}); await send({'type': 'http.response.body'})"
    (folder / "answer.py").write_text(f"async def app(scope, receive, send): {send}")
    with servers.listen(address, "") as door:
        command = [sys.executable, "-m", "uvicorn", "--lifespan", "off", "--fd", str(door.fileno()), "answer:app"]
        service = Service("server", command, health=address, door=door)
        with processes.supervise([service]):
            servers.wait_for(service)
            assert service.process is not None
            service.process.kill()
            service.process.wait()
            assert httpx.get(address, timeout=20, trust_env=False).status_code == 200


def test_clients_wait_longer_than_a_restart_takes() -> None:
    retries = int(servers.PREFECT_SETTINGS["PREFECT_CLIENT_MAX_RETRIES"])
    pauses = sum(2**attempt for attempt in range(1, retries + 1))  # 2 + 4 + ... seconds, as Prefect's client waits
    assert pauses > 2 * (servers.PATIENCE + processes.PAUSES[1])


def test_every_prefect_setting_is_one_that_prefect_knows(folder: Path) -> None:
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = _get_settings_fields(Settings)
    given = servers.PREFECT_SETTINGS | guard.prefect_environment("http://127.0.0.1:4200")
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
    assert deployment["work_pool"]["name"] == servers.POOL
    assert deployment["concurrency_limit"]["limit"] == 1


def test_server_answers_inside_the_block_and_is_gone_after(folder: Path) -> None:
    with servers.temporary_prefect() as address:
        assert os.environ["PREFECT_API_URL"] == f"{address}/api"
        assert httpx.get(f"{address}/api/health").json() is True
        assert httpx.get(f"{address}/api/version").status_code == 401
        login = httpx.BasicAuth(*os.environ["PREFECT_API_AUTH_STRING"].split(":"))
        assert httpx.get(f"{address}/api/version", auth=login).status_code == 200
        assert httpx.post(f"{address}/api/flows/filter", auth=login, json={}).status_code == 403  # no CSRF token
    assert not {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING"} & os.environ.keys()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/api/health")


def test_server_of_the_users_own_is_used_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "their:login")
    with servers.temporary_prefect() as address:
        assert address == "http://prefect.example"
        assert os.environ["PREFECT_API_AUTH_STRING"] == "their:login"
        assert not (folder / ".prefect").exists()
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"


def test_work_goes_on_without_a_server_that_cannot_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers.guard, "PREFECT_SERVER", [sys.executable, "-c", "raise SystemExit(1)"])
    with servers.temporary_prefect() as address:
        assert address is None
        assert "PREFECT_API_URL" not in os.environ
