"""The servers around the runs: Prefect's and its worker, MLflow's UI; for as long as a supervisor runs, or for one run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from urllib.parse import urlsplit

import httpx

from mor.errors import UserError
from tasks.project import guard
from tasks.project.processes import POLL, Service, hold_lock

POOL = "mor-nights"  # prefect.yaml names it too
PREFECT_UI = "http://127.0.0.1:4200"
MLFLOW_UI = "http://127.0.0.1:5000"
PREFECT = [sys.executable, "-m", "prefect"]

# What lets a run in flight survive a restart of the server: for the server, the worker and the flow runs below it.
PREFECT_SETTINGS = {
    "PREFECT_CLIENT_MAX_RETRIES": "8",  # pauses of 2, 4, ... 256 s: it may be away for 8 minutes, by default for one
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",  # a question that is asked once, without patience
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",  # who holds the one slot
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_TO_API_ENABLED": "true",  # the night's log is in the UI
}
PATIENCE = 120.0  # seconds for a service to come up
TEMPORARY_PATIENCE = 60.0  # seconds for the server of one run, which goes on without; a new database takes most of it
TEMPORARY_GRACE = 10.0  # seconds for it to end in


def only_supervisor() -> AbstractContextManager[None]:
    """The folder's lock, for the time of a block; raises ``UserError`` where another supervisor has it."""
    return hold_lock(guard.home() / "lock", "`mor nightly` runs in this folder already; one is enough")


def listen(address: str, way_out: str) -> socket.socket:
    """A socket that listens at the address; raises ``UserError`` if another program does."""
    where = urlsplit(address)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((where.hostname, where.port))
    except OSError as error:
        listening.close()
        raise UserError(f"{address} is taken by another program ({error.strerror}); end it, or {way_out}") from None
    listening.listen(1024)
    return listening


def wait_for(service: Service) -> None:
    """Wait until a supervised service answers; raises ``UserError`` where it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not answers(service):
        if time.monotonic() > deadline:
            raise UserError(f"{service.name} did not come up in {PATIENCE:g} s; {service.log} says why")
        time.sleep(POLL)


def answers(service: Service) -> bool:
    """Whether the service is up."""
    with suppress(httpx.HTTPError):
        return httpx.get(service.health, timeout=2, trust_env=False).status_code == httpx.codes.OK
    return False


# --- Prefect -----------------------------------------------------------------------------------------------------------


def supervised_prefect() -> Service:
    """A Prefect server to keep running, whose history is in ``.prefect``.

    Its socket is the supervisor's and outlives it: who calls while it is started again waits, and is not refused. Prefect's
    clients are patient with a server that is slow, and not with one that is absent when they first call. Hence Uvicorn
    and not ``prefect server start``, which does the same but takes no socket.
    """
    return _prefect_at(PREFECT_UI, listen(PREFECT_UI, "name that server with PREFECT_API_URL"))


@contextmanager
def temporary_prefect() -> Iterator[str | None]:
    """A Prefect server for the time of the block, its history in ``.prefect``; gives its address, or None if it won't start.

    Within the block ``PREFECT_API_URL`` and the login are set, so that flows of this process and of those below it register
    there. A server that the variable names already is used as it is, with the user's own ``PREFECT_API_AUTH_STRING``.
    """
    if own := os.environ.get("PREFECT_API_URL"):
        yield own.removesuffix("/api")
        return
    with socket.create_server(("127.0.0.1", 0)) as door:  # ours from the start: nobody can take the port in between
        address = f"http://127.0.0.1:{door.getsockname()[1]}"
        server = _prefect_at(address, door)
        server.log.write_bytes(b"")
        server.start()
    try:
        up = _comes_up(server)
        with guard.client_environment(address) if up else nullcontext():
            yield address if up else None
    finally:
        _end(server)


def _prefect_at(address: str, door: socket.socket) -> Service:
    command = [*guard.PREFECT_SERVER, "--fd", str(door.fileno())]
    return Service("server", command, guard.prefect_environment(address), f"{address}/api/health", door)


def _comes_up(server: Service) -> bool:
    """Wait until a server that is started once answers; False if it ended or took too long."""
    deadline = time.monotonic() + TEMPORARY_PATIENCE
    while server.process and server.process.poll() is None and time.monotonic() < deadline:
        if answers(server):
            return True
        time.sleep(0.2)
    return False


def _end(server: Service) -> None:
    """End the server and what it started: politely, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        server.end_group(number)
        with suppress(subprocess.TimeoutExpired):
            if server.process:
                server.process.wait(TEMPORARY_GRACE)
            return


def worker() -> Service:
    """What runs the nights that are due, in processes of its own."""
    return Service("worker", [*PREFECT, "worker", "start", "--pool", POOL, "--type", "process"])


def register_deployment() -> None:
    """The work pool, if it is not there yet, and the deployments of ``prefect.yaml``; raises ``UserError`` where that fails."""
    if _run_prefect("work-pool", "inspect", POOL, check=False).returncode:
        _run_prefect("work-pool", "create", POOL, "--type", "process")
    _run_prefect("--no-prompt", "deploy", "--all")


def close_runs() -> None:
    """Mark nights that Prefect believes to be under way as crashed; for a server whose only worker is yet to start.

    What was killed could not say so itself, and would hold the one slot until its lease is over.
    """
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.client.schemas.objects import State, StateType
    from prefect.states import Crashed

    under_way = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    wanted = FlowRunFilter.model_validate({"state": {"type": {"any_": under_way}}})
    nightly = DeploymentFilter.model_validate({"name": {"any_": ["nightly"]}})
    crashed: State[None] = Crashed(message="It was killed; the next night goes on where it stopped.")
    with guard.prefect_client(PREFECT_UI) as client:
        for run in client.read_flow_runs(flow_run_filter=wanted, deployment_filter=nightly):
            client.set_flow_run_state(run.id, crashed, force=True)


def _run_prefect(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*PREFECT, *words], check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise UserError(f"prefect {' '.join(words)} failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return done


# --- MLflow ------------------------------------------------------------------------------------------------------------


def mlflow_ui() -> Service:
    """MLflow's UI on the project's own store, or on that of ``MLFLOW_TRACKING_URI``."""
    return mlflow_at(MLFLOW_UI, "mlflow", "name that server with MLFLOW_TRACKING_URI")


def mlflow_at(address: str, name: str, way_out: str) -> Service:
    """The same at another address; ``way_out`` is what to do where that is taken."""
    door = listen(address, way_out)
    command = [*guard.MLFLOW_SERVER, "--fd", str(door.fileno())]
    return Service(name, command, {guard.OWN_LOGIN: guard.login()}, f"{address}/health", door)
