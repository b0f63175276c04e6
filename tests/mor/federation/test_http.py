"""The transport over real HTTPS on this machine: same bits as in-process, bounded against services that wish it ill."""

from __future__ import annotations

import copy
import pickle
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from mor.federation.endpoint import Limits, create_app
from mor.federation.http import HttpsTransport
from mor.federation.ledger import Ledger
from mor.federation.remote import ClientError, RemoteClient
from mor.federation.service import ClientService
from tests.mor.alignment.test_mixed_reward import BOUNDARY, TableReward
from tests.mor.federation.local import free_port, self_signed, served

TABLE = {"a": 0.25, "b": None, "c": -(2.0**-14)}  # exact in float16
SERVICE = ClientService(TableReward(TABLE), BOUNDARY)
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/msgpack\r\n"

Script = Callable[[ssl.SSLSocket], None]  # what a service does with one connection


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def service(pems: tuple[Path, Path]) -> Iterator[tuple[str, Path]]:
    app = create_app(lambda data, gone: SERVICE.handle(data) if data else b"", "secret", Limits(idle=1))
    with served(app, *pems, idle=1) as port:
        yield f"https://127.0.0.1:{port}", pems[0]


@contextmanager
def scripted(pems: tuple[Path, Path], script: Script) -> Iterator[str]:
    """A service that reads a whole head, then does as ``script`` says, once for every connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pems)

    def answer(plain: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(2**16)
            script(connection)

    with listening(answer) as port:
        yield f"https://127.0.0.1:{port}"


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server on a port of its own, with a thread for each connection."""
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as door:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = door.accept()
                    threads.append(threading.Thread(target=own, args=(connection,), daemon=True))
                    threads[-1].start()

        def own(connection: socket.socket) -> None:
            with connection:
                answer(connection)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield door.getsockname()[1]
        finally:
            door.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for thread in threads:
                thread.join(10)


class Relay:
    """Passes bytes on to a service and counts them: what a wire between the two carries."""

    def __init__(self, port: int) -> None:
        self.port, self.up, self.down, self.connections = port, 0, 0, 0

    def __call__(self, near: socket.socket) -> None:
        self.connections += 1
        with socket.create_connection(("127.0.0.1", self.port)) as far:
            back = threading.Thread(target=self.pass_on, args=(far, near, "up"), daemon=True)
            back.start()
            self.pass_on(near, far, "down")
            back.join()

    def pass_on(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                setattr(self, way, getattr(self, way) + len(data))
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextmanager
def relayed(service: tuple[str, Path], **options: object) -> Iterator[tuple[HttpsTransport, Relay]]:
    relay = Relay(int(service[0].rpartition(":")[2]))
    with listening(relay) as port:
        transport = HttpsTransport(f"https://127.0.0.1:{port}", "secret", service[1], **options)  # type: ignore[arg-type]
        yield transport, relay
        transport.close()


def drip(connection: ssl.SSLSocket, data: bytes, pause: float = 0.1, first: bytes = b"") -> None:
    connection.sendall(first)
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(pause)


@contextmanager
def little_memory(most: float) -> Iterator[None]:
    """What happens meanwhile never holds more than so many bytes."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / 1e6:.0f} MB"


def test_http_and_in_process_scoring_agree_to_the_bit_and_the_byte(service: tuple[str, Path]) -> None:
    url, authority = service
    ledgers = Ledger(), Ledger()
    over_http = RemoteClient("x", HttpsTransport(url, "secret", authority), ledgers[0])
    in_process = RemoteClient("x", SERVICE.handle, ledgers[1])
    asked = (["What?"] * 3, [Image.new("RGB", (4, 4))] * 3, ["a", "b", "c"])
    assert over_http.score(*asked) == in_process.score(*asked) == list(TABLE.values())
    assert ledgers[0].bytes == ledgers[1].bytes


def test_a_wrong_token_is_refused(service: tuple[str, Path]) -> None:
    url, authority = service
    with pytest.raises(ClientError, match="refused with status 401"):
        HttpsTransport(url, "guess", authority)(b"")


def test_a_wrong_token_is_refused_also_where_the_request_is_large(service: tuple[str, Path]) -> None:
    url, authority = service
    with pytest.raises(ClientError, match="refused with status 401"):
        HttpsTransport(url, "guess", authority)(bytes(20 * 2**20))


def test_an_unknown_certificate_is_not_trusted(service: tuple[str, Path]) -> None:
    with pytest.raises(ClientError, match="CERTIFICATE_VERIFY_FAILED"):
        HttpsTransport(service[0], "secret", attempts=1)(b"")


def test_a_certificate_of_another_host_is_not_trusted(service: tuple[str, Path]) -> None:
    url, authority = service
    with pytest.raises(ClientError, match="CERTIFICATE_VERIFY_FAILED, Hostname mismatch"):
        HttpsTransport(url.replace("127.0.0.1", "localhost"), "secret", authority)(b"")


def test_old_tls_is_not_spoken(pems: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pems)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    def answer(plain: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
            connection.recv(2**16)
            connection.sendall(OK + b"content-length: 0\r\n\r\n")

    with listening(answer) as port, pytest.raises(ClientError, match=r"after 1 attempts .*[A-Z]+_PROTOCOL"):
        HttpsTransport(f"https://127.0.0.1:{port}", "secret", pems[0], attempts=1)(b"")


def test_a_client_that_is_down_is_an_error_that_says_so() -> None:
    with pytest.raises(ClientError, match=r"no answer after 2 attempts .*Connection refused"):
        HttpsTransport("https://127.0.0.1:1", "secret", attempts=2)(b"")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1", "https:// only"),
        ("127.0.0.1", "https:// only"),
        ("https://", "is https://host"),
        ("https://host:many", "can't be read"),
        ("https://host/a b", "is https://host"),
        ("https://hóst", "in ASCII"),
        ("https://host\r\nx: y", "is https://host"),
        ("https://name:secret@host", "no user name or password"),
        ("https://host..", "can't be read"),
    ],
)
def test_a_url_that_is_none_is_refused_before_anything_is_sent(url: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as error:
        HttpsTransport(url, "secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("token", ["", "hunter2\n", "hunter2\r\nx: y", "hunter2 ", "hünter2", "hunter2\0"])
def test_a_token_that_a_header_can_not_hold_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII") as error:
        HttpsTransport("https://127.0.0.1", token)
    assert "nter2" not in str(error.value)


def test_a_missing_authority_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    for name in ("missing.pem", "junk.pem"):
        with pytest.raises(ValueError, match=f"{name}: no PEM file"):
            HttpsTransport("https://127.0.0.1", "secret", tmp_path / name)


def test_a_transport_never_shows_its_token(pems: tuple[Path, Path]) -> None:
    def echo(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"HTTP/1.1 200 hunter2\x1b[31m\r\nhunter2\r\n\r\n")

    with scripted(pems, echo) as url:
        transport = HttpsTransport(url, "hunter2", pems[0], attempts=1)
        with pytest.raises(ClientError) as error:
            transport(b"")
    for shown in (repr(transport), str(transport), repr(error.value), str(error.value)):
        assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"HTTP/1.1 403 spoken\x1b[31m\r\ncontent-length: 6\r\n\r\nspoken", "refused with status 403$"),
        (b"HTTP/1.1 204 spoken\r\n\r\n", "refused with status 204$"),
        (b"HTTP/1.1 302 spoken\r\nlocation: https://127.0.0.1/spoken\r\ncontent-length: 0\r\n\r\n", "refused with status 302$"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/spoken\r\ncontent-length: 0\r\n\r\n", "is not application/msgpack$"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "is not application/msgpack$"),
        (OK + b"content-encoding: spoken\r\ncontent-length: 0\r\n\r\n", "has a content-encoding; expected none$"),
        (b"spoken\r\n\r\n", "closed without a whole HTTP reply$"),
        (OK + b"content-length: 20\r\n\r\nspoken", "UNEXPECTED_EOF_WHILE_READING$"),
        (OK + b"x: spoken" * 20_000, "closed without a whole HTTP reply$"),
        (b"", "UNEXPECTED_EOF_WHILE_READING$"),
    ],
)  # fmt: skip
def test_what_is_no_reply_is_an_error_in_our_words(pems: tuple[Path, Path], reply: bytes, expected: str) -> None:
    with scripted(pems, lambda connection: connection.sendall(reply)) as url:
        with pytest.raises(ClientError, match=expected) as error:
            HttpsTransport(url, "secret", pems[0], attempts=2)(b"")
        assert str(error.value).startswith(url)
        assert "spoken" not in str(error.value)


def test_a_compressed_reply_is_neither_asked_for_nor_unpacked(pems: tuple[Path, Path]) -> None:
    packer = zlib.compressobj(wbits=31)  # gzip
    packed = b"".join([*(packer.compress(bytes(10**6)) for _ in range(200)), packer.flush()])  # 200 MB in 200 KB
    head = OK + f"content-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n".encode()
    with (
        little_memory(10e6),
        scripted(pems, lambda connection: connection.sendall(head + packed)) as url,
        pytest.raises(ClientError, match="content-encoding"),
    ):
        HttpsTransport(url, "secret", pems[0])(b"")


@pytest.mark.parametrize("announced", [b"transfer-encoding: chunked", b"content-length: 600000000", b"connection: close"])
def test_a_reply_is_read_up_to_the_bound_and_no_further(pems: tuple[Path, Path], announced: bytes) -> None:
    sent = []

    def flood(connection: ssl.SSLSocket) -> None:
        connection.sendall(OK + announced + b"\r\n\r\n")
        for _ in range(600):
            connection.sendall(b"f4240\r\n" * announced.startswith(b"transfer") + bytes(10**6) + b"\r\n")
            sent.append(10**6)

    with little_memory(60e6), scripted(pems, flood) as url, pytest.raises(ClientError, match="more than 16777216 bytes"):
        HttpsTransport(url, "secret", pems[0])(b"")
    assert sum(sent) < 40e6


def test_a_reply_of_just_the_bound_is_taken(pems: tuple[Path, Path]) -> None:
    reply = bytes(1000)
    answer = OK + b"content-length: 1000\r\n\r\n" + reply
    with scripted(pems, lambda connection: connection.sendall(answer)) as url:
        assert HttpsTransport(url, "secret", pems[0], largest_reply=1000)(b"") == reply
        with pytest.raises(ClientError, match="more than 999 bytes"):
            HttpsTransport(url, "secret", pems[0], largest_reply=999)(b"")


SLOW: dict[str, Script] = {
    "head": lambda connection: drip(connection, OK * 9),
    "body": lambda connection: drip(connection, bytes(99), first=OK + b"content-length: 99\r\n\r\n"),
    "news": lambda connection: drip(connection, b"HTTP/1.1 103 Early Hints\r\n\r\n" * 99, 0.01),
    "silence": lambda connection: time.sleep(4),
    "closing": lambda connection: time.sleep(0.6),
    "busy": lambda connection: connection.sendall(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"),
}


@pytest.mark.parametrize("slow", SLOW)
def test_a_call_costs_its_deadline_at_most_however_slow_the_answer(pems: tuple[Path, Path], slow: str) -> None:
    with scripted(pems, SLOW[slow]) as url:
        transport = HttpsTransport(url, "secret", pems[0], deadline=2.0, attempts=50)
        start = time.monotonic()
        with pytest.raises(ClientError, match="in at most 2 s"):
            transport(b"")
        assert time.monotonic() - start < 2.2


def test_a_handshake_that_never_ends_and_a_request_that_is_not_read_cost_the_deadline_too(pems: tuple[Path, Path]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pems)

    def deaf(plain: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(plain, server_side=True):
            time.sleep(1.5)

    for answer in (lambda plain: time.sleep(1.5), deaf):
        with listening(answer) as port:
            start = time.monotonic()
            with pytest.raises(ClientError, match="timed out"):
                HttpsTransport(f"https://127.0.0.1:{port}", "secret", pems[0], deadline=1.0)(bytes(20 * 2**20))
            assert time.monotonic() - start < 1.1


def test_the_wait_for_another_thread_s_call_counts_too(pems: tuple[Path, Path]) -> None:
    with scripted(pems, lambda connection: time.sleep(4)) as url:
        transport, took = HttpsTransport(url, "secret", pems[0], deadline=1.0), []

        def call() -> None:
            start = time.monotonic()
            with pytest.raises(ClientError):
                transport(b"")
            took.append(time.monotonic() - start)

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert max(took) < 1.1
    assert len(took) == 4


def test_environment_proxies_are_not_used(service: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert HttpsTransport(service[0], "secret", service[1], attempts=1)(b"") == b""


def test_what_the_socket_carried_is_counted_to_the_byte_and_fifty_calls_share_one_connection(service: tuple[str, Path]) -> None:
    """Payload 50 x (1000 down, 13 up at least). A call's headers and TLS records cost at most 290 bytes down and 150 up, a
    handshake 1000 down and 2200 up."""
    with relayed(service) as (transport, relay):
        up = len(transport(b"x" * 1000))
        handshake = transport.socket_bytes
        for _ in range(49):
            transport(b"x" * 1000)
        assert transport.socket_bytes == (relay.up, relay.down)
        assert relay.connections == 1
        assert handshake[0] < 2200 + up + 150
        assert handshake[1] < 1000 + 1000 + 290
        assert relay.up < 50 * (up + 150) + 2200
        assert relay.down < 50 * (1000 + 290) + 1000
        assert relay.up + relay.down < 1.3 * 50 * (1000 + up) + 3200 + 50 * 160


def test_a_connection_that_the_service_closed_is_made_anew_and_all_is_counted(service: tuple[str, Path]) -> None:
    with relayed(service) as (transport, relay):
        transport(b"")
        time.sleep(1.8)  # the service keeps it for one second
        assert transport(b"") == b""
        assert relay.connections == 2
        assert transport.socket_bytes == (relay.up, relay.down)


def test_a_call_that_meets_a_broken_connection_is_made_again(pems: tuple[Path, Path]) -> None:
    calls = []

    def every_other(connection: ssl.SSLSocket) -> None:
        calls.append(1)
        if len(calls) % 2 == 0:
            connection.sendall(OK + b"content-length: 2\r\n\r\nok")

    with scripted(pems, every_other) as url:
        assert HttpsTransport(url, "secret", pems[0])(b"") == b"ok"
    assert len(calls) == 2


def test_threads_share_a_transport(service: tuple[str, Path]) -> None:
    with relayed(service) as (transport, relay):
        replies: list[bytes] = []
        callers = [threading.Thread(target=lambda: replies.extend(transport(b"") for _ in range(5))) for _ in range(6)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert replies == [b""] * 30
        assert relay.connections == 1


def test_a_transport_is_pickled_and_copied_without_its_connection(service: tuple[str, Path]) -> None:
    transport = HttpsTransport(service[0], "secret", service[1], deadline=7.0, attempts=2, largest_reply=9)
    transport(b"")
    for twin in (pickle.loads(pickle.dumps(transport)), copy.deepcopy(transport)):
        assert twin == transport
        assert twin.socket_bytes == (0, 0)
        assert twin(b"") == b""


def test_many_transports_leave_no_connection_behind(service: tuple[str, Path]) -> None:
    """Warnings of unclosed sockets are errors here."""
    for _ in range(5):
        HttpsTransport(service[0], "secret", service[1])(b"")
