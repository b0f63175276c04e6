"""The login, and the servers of `mor nightly` against those who should not use them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import httpx
import psutil
import pytest

from mor.errors import UserError
from tasks.nights import demo
from tasks.project import guard, processes
from tasks.project import servers as project_servers

ROOT = Path(__file__).parents[3]
FOREIGN = {"Origin": "https://evil.example"}
REBOUND = {"Host": "evil.example"}
NIGHTLY = """
from prefect import flow

@flow
def nightly(night: str = "") -> None:
    pass
"""
PREFECT_YAML = """
name: trial
deployments:
  - {name: nightly, entrypoint: "flows_nightly.py:nightly", work_pool: {name: mor-nights}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the login -----------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_login_is_made_once_for_its_owner_alone(folder: Path) -> None:
    (folder / ".prefect").mkdir(mode=0o755)  # as earlier versions made it
    before = os.umask(0)
    try:
        login = guard.login()
    finally:
        os.umask(before)
    assert mode(folder / ".prefect") == 0o700
    assert mode(folder / ".prefect" / "login") == 0o600
    user, _, password = login.partition(":")
    assert user == "mor"
    assert len(password) == 43  # 32 bytes in base64 without padding: ceil(32 * 4 / 3)
    assert guard.login() == login
    assert [path.name for path in (folder / ".prefect").iterdir()] == ["login"]


def test_starts_at_the_same_time_agree_on_one_login(folder: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: guard.login(), range(64)))) == 1
    assert [path.name for path in (folder / ".prefect").iterdir()] == ["login"]


def test_a_login_that_others_may_have_read_is_refused_with_the_way_out(folder: Path) -> None:
    login = guard.login()
    (folder / ".prefect" / "login").chmod(0o640)
    with pytest.raises(UserError, match=r"\.prefect/login: other users .* delete the file") as refused:
        guard.login()
    assert login.partition(":")[2] not in str(refused.value)


def test_the_users_own_login_comes_first_and_no_file_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:pass:word")
    assert guard.login() == "admin:pass:word"
    assert not (folder / ".prefect").exists()
    assert "PREFECT_SERVER_API_AUTH_STRING" in guard.login_hint()
    assert "pass:word" not in guard.login_hint()


def test_an_own_login_without_a_user_is_refused_unseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "hunter2")
    with pytest.raises(UserError, match="must be <user>:<password>") as refused:
        guard.login()
    assert "hunter2" not in str(refused.value)


def test_the_hint_says_where_the_login_is_and_not_what(folder: Path) -> None:
    assert ".prefect/login" in guard.login_hint()
    assert guard.login().partition(":")[2] not in guard.login_hint()


@pytest.mark.parametrize(
    ("header", "known"),
    [
        ("Basic YTpi", True),  # base64 of "a:b"
        ("basic YTpi", True),
        ("Basic YTpj", False),  # "a:c"
        ("Bearer YTpi", False),
        ("Basic", False),
        ("Basic ****", False),
        ("Basic w7Y6Yg==", False),  # a letter outside ASCII
        ("", False),
    ],
)
def test_only_the_login_opens(header: str, known: bool) -> None:
    assert guard.knows(header, "a:b") is known


# --- the servers of `mor nightly` ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Servers:
    prefect: str
    mlflow: str
    login: httpx.BasicAuth
    password: str
    folder: Path


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Prefect's and MLflow's, started as `mor nightly` starts them, in a project of one empty flow."""
    project = tmp_path_factory.mktemp("nightly")
    (project / "flows_nightly.py").write_text(NIGHTLY)
    (project / "prefect.yaml").write_text(PREFECT_YAML)
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            ports.append(free.getsockname()[1])
    prefect, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr(project_servers, "PREFECT_UI", prefect)
        patch.setattr(project_servers, "MLFLOW_UI", mlflow)
        own = [project_servers.supervised_prefect(), project_servers.mlflow_ui()]
        login = guard.login()
        login_there = {"PREFECT_API_URL": f"{prefect}/api", guard.CLIENT_LOGIN: login}
        for name, value in (project_servers.PREFECT_SETTINGS | login_there).items():
            patch.setenv(name, value)
        with processes.supervise(own):
            for service in own:
                project_servers.wait_for(service)
            user, _, password = login.partition(":")
            yield Servers(prefect, mlflow, httpx.BasicAuth(user, password), password, project)
        for service in own:
            assert service.door
            service.door.close()


def get(url: str, **options: object) -> httpx.Response:
    return httpx.request(str(options.pop("method", "GET")), url, trust_env=False, timeout=30, **options)  # type: ignore[arg-type]


def test_prefect_tells_and_does_nothing_without_the_login(servers: Servers) -> None:
    assert get(f"{servers.prefect}/api/version").status_code == 401
    assert get(f"{servers.prefect}/api/csrf-token?client=x").status_code == 401
    for path in ("flows/filter", "deployments/filter", "flows/"):
        asked = get(f"{servers.prefect}/api/{path}", method="POST", json={"name": "x"}, headers=FOREIGN)
        assert asked.status_code in (401, 403), path
        assert get(f"{servers.prefect}/api/{path}", method="POST", json={"name": "x"}).status_code in (401, 403), path
    assert get(f"{servers.prefect}/api/health").json() is True  # what wait_for asks


def test_prefect_wants_a_csrf_token_of_who_has_the_login(servers: Servers) -> None:
    url, json_ = f"{servers.prefect}/api/flows/", {"name": "forged"}
    refused = get(url, method="POST", auth=servers.login, json=json_)
    assert (refused.status_code, refused.json()) == (403, {"detail": "Missing CSRF token."})
    token = get(f"{servers.prefect}/api/csrf-token?client=test", auth=servers.login).json()["token"]
    headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}
    assert get(url, method="POST", auth=servers.login, json=json_, headers=headers).status_code == 201
    assert get(url, method="POST", json=json_, headers=headers).status_code == 401


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_page_of_another_site_gets_no_allowance(servers: Servers, method: str) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for server in (f"{servers.prefect}/api/version", f"{servers.mlflow}/ajax-api/2.0/mlflow/experiments/search"):
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
            answer = get(server, method=method, auth=servers.login, headers=asks | {"Origin": origin})
            assert answer.status_code == 403, (server, origin)
            assert not [name for name in answer.headers if name.startswith("access-control")], (server, origin)


def test_prefects_own_page_may_ask_under_both_names_of_this_machine(servers: Servers) -> None:
    for name in ("127.0.0.1", "localhost"):
        origin = servers.prefect.replace("127.0.0.1", name)
        answer = get(f"{servers.prefect}/api/version", auth=servers.login, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)


def test_a_name_that_was_pointed_at_this_machine_is_refused(servers: Servers) -> None:
    for server in (f"{servers.prefect}/", f"{servers.prefect}/api/health", f"{servers.mlflow}/", f"{servers.mlflow}/health"):
        assert get(server, auth=servers.login, headers=REBOUND).status_code == 400, server


def test_mlflow_asks_for_the_login_and_then_shows_the_projects_runs(servers: Servers) -> None:
    code = "from mlflow import MlflowClient; MlflowClient().create_experiment('written-directly')"
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-c", code], cwd=servers.folder, env=quiet, check=True, capture_output=True)
    search = {"method": "POST", "json": {"max_results": 9}}
    url = f"{servers.mlflow}/ajax-api/2.0/mlflow/experiments/search"
    for path in ("", "version", "graphql", "metrics", "get-artifact?path=x&run_uuid=y"):
        refused = get(f"{servers.mlflow}/{path}")
        assert refused.status_code == 401, path
        assert refused.headers["www-authenticate"].startswith("Basic")
    assert get(url, **search).status_code == 401
    found = get(url, auth=servers.login, **search).json()["experiments"]
    assert {experiment["name"] for experiment in found} == {"Default", "written-directly"}
    assert get(f"{servers.mlflow}/", auth=servers.login).headers["x-frame-options"] == "DENY"


def test_both_servers_listen_on_this_machine_alone(servers: Servers) -> None:
    ports = {int(address.rpartition(":")[2]) for address in (servers.prefect, servers.mlflow)}
    listening = {(c.laddr.ip, c.laddr.port) for c in psutil.Process().net_connections("inet") if c.status == "LISTEN"}
    assert {(ip, port) for ip, port in listening if port in ports} == {("127.0.0.1", port) for port in ports}


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out", "work_pools/mor-nights/workers/connect"])
def test_websockets_are_closed_to_who_has_no_login(servers: Servers, path: str) -> None:
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.typing import Origin, Subprotocol

    async def told(token: str, origin: str | None) -> str:
        address = f"{servers.prefect.replace('http', 'ws')}/api/{path}"
        try:
            async with connect(address, subprotocols=[Subprotocol("prefect")], origin=origin and Origin(origin)) as opened:
                await opened.send(json.dumps({"type": "auth", "token": token}))
                return str(json.loads(await asyncio.wait_for(opened.recv(), 20))["type"])
        except (ConnectionClosed, InvalidStatus) as error:
            return type(error).__name__

    assert asyncio.run(told("wrong", None)) == "ConnectionClosedError"
    assert asyncio.run(told(f"mor:{servers.password}", "https://evil.example")) == "InvalidStatus"
    assert asyncio.run(told(f"mor:{servers.password}", None)) == "auth_success"


def test_nights_are_deployed_run_and_closed_and_the_login_stays_where_it_is(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(servers.folder)
    project_servers.register_deployment()
    seen: list[str] = []
    with processes.supervise([project_servers.worker()]), guard.prefect_client(servers.prefect) as client:
        deployment = client.read_deployment_by_name("nightly/nightly").id
        done = client.create_flow_run_from_deployment(deployment, name="night 2026-01-01").id

        def ended() -> bool:
            seen.extend(" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))
            state = client.read_flow_run(done).state
            return bool(state and state.is_final())

        waiting = threading.Event()
        for _ in range(240):
            if ended():
                break
            waiting.wait(0.25)
        assert state_of(client, done) == "Completed"
        assert demo.seen_in_prefect("2026-01-01", servers.prefect) == "Completed"
    with guard.prefect_client(servers.prefect) as client:
        cut_off = client.create_flow_run_from_deployment(deployment).id
        from prefect.states import Running

        client.set_flow_run_state(cut_off, Running(), force=True)
        project_servers.close_runs()
        assert state_of(client, cut_off) == "Crashed"
        assert state_of(client, done) == "Completed"
    assert not [line for line in seen if servers.password in line], "a command line shows the login"
    holders = [path for path in servers.folder.rglob("*") if path.is_file() and servers.password.encode() in path.read_bytes()]
    assert holders == [servers.folder / ".prefect" / "login"]


def state_of(client: object, run: UUID) -> str:
    return str(client.read_flow_run(run).state.name)  # type: ignore[attr-defined]
