"""One execution of the whole pipeline: what is out of date, ``dvc repro`` as one subprocess, and a Prefect server for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import httpx
import psutil

from tasks import paths

SERVER_PATIENCE = 60.0  # seconds for the server to come up; a new database takes most of it
DVC = [sys.executable, "-m", "dvc"]
SERVER = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]


class StageFailed(RuntimeError):
    """``dvc repro`` stopped; ``code`` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"dvc repro ended with exit code {code}")
        self.code = code


def outdated_stages() -> list[str] | None:
    """Stages whose own inputs, code, settings or results changed, by ``dvc status``; None where it can't tell (locked)."""
    result = subprocess.run([*DVC, "status", "--json"], check=False, capture_output=True, text=True, env=_environment())
    if result.returncode:
        return None
    changed: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return list(changed)


def reproduce(arguments: Sequence[str] = ()) -> None:
    """Run ``dvc repro``, its output going straight to the terminal; raises ``StageFailed``, or ``KeyboardInterrupt``.

    Ctrl-C reaches every process in the terminal's group by itself: the stage ends, DVC tidies up, and this process waits
    for both. A SIGTERM, which reaches this process alone, is passed on to DVC and its stage as the same interrupt.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGTERM and dvc:
            with suppress(psutil.Error):
                process = psutil.Process(dvc.pid)
                for member in (*process.children(recursive=True), process):
                    member.send_signal(signal.SIGINT)

    dvc: subprocess.Popen[bytes] | None = None
    # Set before DVC starts: a shell's background job is born deaf to SIGINT, and DVC would inherit that.
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        dvc = subprocess.Popen([*DVC, "--wait-for-lock", "repro", *arguments], env=_environment())
        code = dvc.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
    if code:
        raise StageFailed(code)


@contextmanager
def prefect_server() -> Iterator[str | None]:
    """A Prefect server for the time of the block, its history in ``.prefect``; gives its address, or None if it won't start.

    Within the block ``PREFECT_API_URL`` is set, so that flows of this process and of those below it register there. A
    server that the variable names already is used as it is.
    """
    if own := os.environ.get("PREFECT_API_URL"):
        yield own.removesuffix("/api")
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    home = paths.PREFECT_HOME.resolve()
    home.mkdir(exist_ok=True)
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*SERVER, "--port", str(port)],
            env=_environment() | {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"{address}/api"},
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives a Ctrl-C until the stages have reported their end
        )
    try:
        if not _healthy(f"{address}/api/health", server):
            yield None
            return
        os.environ["PREFECT_API_URL"] = f"{address}/api"
        yield address
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        _stop(server)


def _healthy(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until the server answers; False if it ended or took too long."""
    deadline = time.monotonic() + SERVER_PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK:
                return True
        time.sleep(0.2)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and what it started: politely, then after 10 s by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)
            return


def _environment() -> dict[str, str]:
    """This process's environment, with its own ``python`` found first and without telemetry."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
