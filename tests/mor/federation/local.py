"""What the tests over HTTPS run on this machine: a certificate, and a service in a process of its own.

``python -m tests.mor.federation.local PORT CERTIFICATE KEY`` serves ``handle`` below until it is stopped.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from starlette.types import ASGIApp

from mor.federation.endpoint import Door, Limits, serve
from mor.federation.http import HttpsTransport

ROOT = Path(__file__).parents[3]
TOKEN = "secret"
LIMITS = Limits(connections=32, head=2.0, transfer=2.0, queue=1.5, idle=2)  # as in use, but sooner
HIDDEN = "the annotator wrote this"


def self_signed(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoded = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(encoded)
    return folder / "cert.pem", folder / "key.pem"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Handle:
    """A stand-in for a client: answers backwards, and does what it is told to by some words."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = self.left = 0  # calls under way, most of them at once, calls ended for want of a caller

    def __call__(self, data: bytes, gone: Callable[[], bool]) -> bytes:
        if data == b"state":
            return json.dumps({"most": self.most, "left": self.left}).encode()
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self.answer(data, gone)
        finally:
            self.now -= 1

    def answer(self, data: bytes, gone: Callable[[], bool]) -> bytes:
        if data == b"fail":
            raise RuntimeError(HIDDEN)
        if data == b"work":
            end = time.monotonic() + 20
            while not gone() and time.monotonic() < end:
                time.sleep(0.01)
            self.left += gone()
        if data == b"slow":
            time.sleep(0.4)
        if data == b"long":
            return b"x" * 12 * 2**20  # more than sockets hold
        return data[::-1]


@dataclass(frozen=True)
class Running:
    """A service in a process of its own."""

    port: int
    authority: Path
    process: psutil.Process
    rss: int  # bytes of memory when it had started

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def transport(self, **options: object) -> HttpsTransport:
        return HttpsTransport(self.url, TOKEN, self.authority, **options)  # type: ignore[arg-type]

    def plain(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def tls(self) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.authority))
        with ExitStack() as failed:
            plain = failed.enter_context(self.plain())
            connection = context.wrap_socket(plain, server_hostname="127.0.0.1")
            failed.pop_all()
            return connection

    def state(self) -> dict[str, int]:
        counted: dict[str, int] = json.loads(self.transport(deadline=30.0, attempts=20)(b"state"))
        return counted

    def works(self) -> bool:
        return self.transport(deadline=10.0, attempts=20)(b"abc") == b"cba"

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Through what happens meanwhile the process is never 200 MB larger than at its start, and answers afterwards."""
        most, done = 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.02):
                most = max(most, self.process.memory_info().rss)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield
            assert self.works()
        finally:
            done.set()
            watching.join()
        assert most - self.rss < 200e6, f"{(most - self.rss) / 1e6:.0f} MB"


@contextmanager
def served(app: ASGIApp, certificate: Path, key: Path, idle: int) -> Iterator[int]:
    """The port of an application that is served by a thread."""
    config = uvicorn.Config(
        app, ssl_certfile=certificate, ssl_keyfile=key, timeout_keep_alive=idle, log_level="critical",
        loop="asyncio", server_header=False, date_header=False, ws="none", lifespan="off", interface="asgi3",
    )  # fmt: skip
    server, door = uvicorn.Server(config), Door("127.0.0.1", 0, Limits(head=300.0))
    thread = threading.Thread(target=server.run, args=([door],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield door.getsockname()[1]
    server.should_exit = True
    thread.join()


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    certificate, key = self_signed(folder)
    port = free_port()
    command = [sys.executable, "-m", "tests.mor.federation.local", str(port), str(certificate), str(key)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for _ in range(1200):
            assert process.poll() is None
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        seen = psutil.Process(process.pid)
        yield Running(port, certificate, seen, seen.memory_info().rss)
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    serve(Handle(), TOKEN, "127.0.0.1", int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), LIMITS)
