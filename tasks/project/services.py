"""The services around the nights: Prefect's server and worker, MLflow's UI, and a webhook.

A service is a process that is started again when it ends. ``supervise`` does only that; it knows nothing of nights.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import httpx
import psutil
from rich.console import Console
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from mor.config import ConfigError, UserError
from tasks.project import guard, paths

POOL = "mor-nights"  # prefect.yaml names it too
PREFECT_UI = "http://127.0.0.1:4200"
MLFLOW_UI = "http://127.0.0.1:5000"

# What lets a run in flight survive a restart of the server: for the server, the worker and the flow runs below it.
PREFECT = {
    "PREFECT_CLIENT_MAX_RETRIES": "8",  # pauses of 2, 4, ... 256 s: it may be away for 8 minutes, by default for one
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",  # a question that is asked once, without patience
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",  # who holds the one slot
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_TO_API_ENABLED": "true",  # the night's log is in the UI
}
SERVICE_VARIABLE = "MOR_SERVICE_OF"  # marks what a supervisor started, so that its successor can end what it left
PATIENCE = 120.0  # seconds for a service to come up
PAUSES = (1.0, 30.0)  # seconds before a service is started again: the first pause, which doubles, and the longest
POLL = 0.5
GRACE = 30.0  # seconds to end in; a night has a stage and its workers to end
WEBHOOK_VARIABLE = "MOR_WEBHOOK"  # its address, which is a secret: who knows it can write there
WEBHOOK_PATIENCE = 20.0  # seconds for all tries together
console = Console(stderr=True)


@dataclass
class Service:
    """A process to keep running; ``health`` is a URL that answers with 200 once it is up."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)  # the login is in it
    health: str = ""
    door: socket.socket | None = None  # a listening socket that it takes over
    process: subprocess.Popen[bytes] | None = None
    pause: float = PAUSES[0]
    due: float = 0.0  # when it may be started (again), on the monotonic clock
    began: float = 0.0

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return paths.PREFECT_HOME / f"{self.name}.log"


@contextmanager
def supervise(services: Sequence[Service]) -> Iterator[None]:
    """Keep ``services`` running for the time of the block, from the first to the last; end them in reverse order.

    One that ends is started again after a pause that doubles, up to half a minute, until it has stayed for as long.
    """
    stop = threading.Event()
    keeper = threading.Thread(target=_keep, args=(services, stop), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()
        for service in reversed(services):
            end(service.name)
            if service.process:
                service.process.wait()


def _keep(services: Sequence[Service], stop: threading.Event) -> None:
    while not stop.wait(POLL):
        for service in services:
            look_after(service)


def look_after(service: Service) -> None:
    """Start the service if it is due; note its end, and when it is due again."""
    now = time.monotonic()
    if service.process and (code := service.process.poll()) is not None:
        if now - service.began > PAUSES[1]:
            service.pause = PAUSES[0]
        with suppress(ProcessLookupError):
            os.killpg(service.process.pid, signal.SIGKILL)  # what a killed process leaves in its group keeps the port
        console.print(f"{service.name} ended with {code}; again in {service.pause:g} s ({service.log})", highlight=False)
        service.process, service.due, service.pause = None, now + service.pause, min(2 * service.pause, PAUSES[1])
    if service.process is None and now >= service.due:
        guard.home()
        with service.log.open("ab") as log:
            service.process = subprocess.Popen(
                service.command,
                env=os.environ | service.environment | {SERVICE_VARIABLE: _mark(service.name)},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[service.door.fileno()] if service.door else [],
                start_new_session=True,  # Ctrl-C is the supervisor's, who ends them in order
            )  # fmt: skip
        service.began = now


def end(name: str) -> None:
    """End a service of this folder, whoever started it, and what it started: that first, so that it can still report.

    A night below the worker gets time to end its stage and to tell Prefect. What is deaf to SIGTERM is killed after 30 s.
    """
    marked = _marked(name)
    below = [process for process in marked if _parent(process) in marked]
    roots = [process for process in marked if process not in below]
    for layer in ([process for process in below if _parent(process) in roots], roots):
        for process in layer:
            with suppress(psutil.Error):
                process.terminate()
        _wait(layer, GRACE)
    for process in _marked(name):
        with suppress(psutil.Error):
            process.kill()


def end_leftovers() -> None:
    """End what a supervisor of this folder that was killed has left, and the night that ran below it."""
    for name in ("worker", "mlflow", "server"):
        end(name)


def _mark(name: str) -> str:
    return f"{Path.cwd()}:{name}"


def _marked(name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(SERVICE_VARIABLE) == _mark(name):
                found.append(process)
    return [process for process in found if _runs(process)]


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.05)


def _runs(process: psutil.Process) -> bool:
    """Whether it still does something; one that ended stays in the table until its parent asks."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _parent(process: psutil.Process) -> psutil.Process | None:
    with suppress(psutil.Error):
        return process.parent()
    return None


@contextmanager
def alone() -> Iterator[None]:
    """Hold the folder's lock; raises ``UserError`` where another supervisor has it."""
    guard.home()
    with (paths.PREFECT_HOME / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{lock.name}: `mor nightly` runs in this folder already; one is enough") from None
        yield


def heed_signals() -> None:
    """Let SIGTERM and a closed terminal end this process as Ctrl-C does, so that it ends what it has started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, interrupt)


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
    """Wait until the service answers; raises ``UserError`` where it takes too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(service.health, timeout=2, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(POLL)
    raise UserError(f"{service.name} did not come up in {PATIENCE:g} s; {service.log} says why")


def prefect_server() -> Service:
    """A Prefect server whose history is in ``.prefect``.

    Its socket is the supervisor's and outlives it: who calls while it is started again waits, and is not refused. Prefect's
    clients are patient with a server that is slow, and not with one that is absent when they first call. Hence Uvicorn
    and not ``prefect server start``, which does the same but takes no socket.
    """
    door = listen(PREFECT_UI, "name that server with PREFECT_API_URL")
    command = [*guard.PREFECT, "--fd", str(door.fileno())]
    return Service("server", command, guard.prefect_environment(PREFECT_UI), f"{PREFECT_UI}/api/health", door)


def mlflow_ui() -> Service:
    """MLflow's UI on the project's own store, or on that of ``MLFLOW_TRACKING_URI``."""
    return mlflow_at(MLFLOW_UI, "mlflow", "name that server with MLFLOW_TRACKING_URI")


def mlflow_at(address: str, name: str, way_out: str) -> Service:
    """The same at another address; ``way_out`` is what to do where that is taken."""
    door = listen(address, way_out)
    command = [*guard.MLFLOW, "--fd", str(door.fileno())]
    return Service(name, command, {guard.OWN_LOGIN: guard.login()}, f"{address}/health", door)


def worker() -> Service:
    """What runs the nights that are due, in processes of its own."""
    return Service("worker", _module("prefect", "worker", "start", "--pool", POOL, "--type", "process"))


def register_deployment() -> None:
    """The work pool, if it is not there yet, and the deployments of ``prefect.yaml``; raises ``UserError`` where that fails."""
    if _run("work-pool", "inspect", POOL).returncode:
        _check(_run("work-pool", "create", POOL, "--type", "process"))
    _check(_run("--no-prompt", "deploy", "--all"))


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


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_module("prefect", *arguments), check=False, capture_output=True, text=True)


def _check(done: subprocess.CompletedProcess[str]) -> None:
    if done.returncode:
        raise UserError(f"{' '.join(done.args[2:])} failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def _module(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


def webhook() -> str:
    """The address of ``MOR_WEBHOOK``, empty for none; raises ``ConfigError``, which does not repeat it."""
    address = os.environ.get(WEBHOOK_VARIABLE, "")
    if not address:
        return ""
    try:
        where = httpx.URL(address)
    except httpx.InvalidURL:
        where = httpx.URL("")
    if where.host and (where.scheme == "https" or (where.scheme == "http" and where.host in (*guard.HOSTS, "::1"))):
        return address
    raise ConfigError(f"{WEBHOOK_VARIABLE}: expected an https:// address (http:// on this machine alone); mend or unset it")


def notify(event: Mapping[str, str]) -> None:
    """Post ``event`` as JSON to the webhook, if there is one.

    One that does not take it within 20 s is warned of on stderr and changes nothing else. It is believed in nothing: no
    redirect is followed and no answer read. Its address appears nowhere.
    """
    try:
        address = webhook()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return
    if not address:
        return
    failure = [f"no answer in {WEBHOOK_PATIENCE:g} s"]
    sender = threading.Thread(target=_post, args=(address, dict(event), failure), daemon=True)
    sender.start()
    sender.join(WEBHOOK_PATIENCE)
    if failure:
        print(f"The webhook of {WEBHOOK_VARIABLE} did not take {dict(event)}: {failure[-1]}", file=sys.stderr)


def _post(address: str, event: dict[str, str], failure: list[str]) -> None:
    """Three tries; leaves the reason in ``failure``, which is empty where one succeeded."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells the address of every request
    try:
        for attempt in Retrying(
            retry=retry_if_exception(_may_pass), wait=wait_exponential(0.5, max=4), stop=stop_after_attempt(3), reraise=True
        ):
            with attempt, httpx.stream("POST", address, json=event, timeout=5, follow_redirects=False) as answer:
                answer.raise_for_status()
        failure.clear()
    except httpx.HTTPStatusError as error:
        failure.append(f"it answered with {error.response.status_code}")
    except Exception as error:  # its text may hold the address
        failure.append(type(error).__name__)


def _may_pass(error: BaseException) -> bool:
    """Whether another try may succeed: after silence, and after an error of the server's own."""
    return isinstance(error, httpx.TransportError) or (
        isinstance(error, httpx.HTTPStatusError) and (error.response.is_server_error or error.response.status_code == 429)
    )
