"""Processes: one at a time by a lock, services that are started again when they end, and the end of what is left.

A process that this project starts bears its folder in its environment, so that a successor can end what a killed one has left.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil
from rich.console import Console

from mor.errors import UserError
from tasks.project import guard, paths

NIGHT_VARIABLE = "MOR_NIGHT_OF"  # marks the processes of a night: DVC, its stages and their workers, the trial
SERVICE_VARIABLE = "MOR_SERVICE_OF"  # marks what a supervisor started
PAUSES = (1.0, 30.0)  # seconds before a service is started again: the first pause, which doubles, and the longest
POLL = 0.5
GRACE = 30.0  # seconds for a service to end in; a night has a stage and its workers to end
INTERRUPT_GRACE = 10.0  # seconds for a stage
console = Console(stderr=True)


@contextmanager
def hold_lock(file: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of ``file`` for the time of the block; raises ``UserError`` with ``refusal`` where another process does.

    It ends with its holder, however that ends.
    """
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{file}: {refusal}") from None
        yield


def heed_signals() -> None:
    """Let SIGTERM and a closed terminal end this process as Ctrl-C does, so that it ends what it has started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, interrupt)


# --- services ----------------------------------------------------------------------------------------------------------


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

    def start(self, **marks: str) -> None:
        """Start its process, with ``marks`` in its environment too."""
        guard.home()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=os.environ | self.environment | marks,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[self.door.fileno()] if self.door else [],
                start_new_session=True,  # Ctrl-C is that of who started it, who ends it in order
            )  # fmt: skip
        self.began = time.monotonic()

    def end_group(self, number: int) -> None:
        """Send a signal to its process and to what that has started in its group."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


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
            end_service(service.name)
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
        service.end_group(signal.SIGKILL)  # what a killed process leaves in its group keeps the port
        console.print(f"{service.name} ended with {code}; again in {service.pause:g} s ({service.log})", highlight=False)
        service.process, service.due, service.pause = None, now + service.pause, min(2 * service.pause, PAUSES[1])
    if service.process is None and now >= service.due:
        service.start(**{SERVICE_VARIABLE: _mark(service.name)})


# --- ending ------------------------------------------------------------------------------------------------------------


def end_service(name: str) -> None:
    """End a service of this folder, whoever started it, and what it started: that first, so that it can still report.

    A night below the worker gets time to end its stage and to tell Prefect. What is deaf to SIGTERM is killed after 30 s.
    """
    found = marked(SERVICE_VARIABLE, _mark(name))
    below = [process for process in found if _parent(process) in found]
    roots = [process for process in found if process not in below]
    for layer in ([process for process in below if _parent(process) in roots], roots):
        _signal(layer, signal.SIGTERM, GRACE)
    _signal(marked(SERVICE_VARIABLE, _mark(name)), signal.SIGKILL, 0)


def end_services() -> None:
    """End what a supervisor of this folder that was killed has left, and the night that ran below it."""
    for name in ("worker", "mlflow", "server"):
        end_service(name)


def end_night_processes() -> None:
    """End what a night of this project has started and not ended: DVC, its stages and their workers.

    Who is interrupted may just have started another, so they are looked for until none is left.
    """
    deadline, asked = time.monotonic() + INTERRUPT_GRACE, set[int]()
    while (left := marked(NIGHT_VARIABLE, str(Path.cwd()))) and time.monotonic() < deadline:
        _signal([process for process in left if process.pid not in asked], signal.SIGINT, 0.0)
        time.sleep(0.1)
        asked |= {process.pid for process in left}
    _signal(left, signal.SIGKILL, INTERRUPT_GRACE)


def marked(variable: str, mark: str) -> list[psutil.Process]:
    """The running processes whose environment has that mark, other than this one."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(variable) == mark:
                found.append(process)
    return [process for process in found if _runs(process) and process.pid != os.getpid()]


def _mark(name: str) -> str:
    return f"{Path.cwd()}:{name}"


def _signal(processes: Sequence[psutil.Process], number: int, patience: float) -> None:
    """Send a signal, and wait so many seconds for all to end."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)
    deadline = time.monotonic() + patience
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
