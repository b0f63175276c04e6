"""A client's service against callers who wish it ill, over real TLS: it refuses them, stays small, and answers on."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from mor.federation.endpoint import create_app, serve
from mor.federation.remote import ClientError
from tests.mor.federation.local import HIDDEN, LIMITS, TOKEN, Running, running

ALLOWED = f"authorization: Bearer {TOKEN}\r\ncontent-type: application/msgpack\r\n"
POST = f"POST /message HTTP/1.1\r\nhost: client\r\n{ALLOWED}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("tls")) as started:
        yield started


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = b""
    with suppress(OSError):
        while data := connection.recv(2**16):
            received += data
    return received


def ask(service: Running, request: str, body: bytes = b"") -> bytes:
    with service.tls() as connection:
        connection.sendall(request.encode("latin-1") + body)
        return everything(connection)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def bare(answer: bytes) -> bool:
    """Whether nothing but the status and the headers that HTTP needs was answered."""
    head, _, body = answer.partition(b"\r\n\r\n")
    names = {line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    return body == b"" and names <= {b"content-length", b"connection"}


def test_a_body_that_never_ends_is_read_up_to_the_limit_and_refused(service: Running) -> None:
    with service.bounded(), service.tls() as connection:
        connection.sendall(f"{POST}transfer-encoding: chunked\r\n\r\n".encode())
        sent, chunk = 0, b"100000\r\n" + bytes(2**20) + b"\r\n"
        with suppress(OSError):
            while sent < 400 * 2**20:
                connection.sendall(chunk)
                sent += 2**20
        answer = everything(connection)
        assert status(answer) == 413
        assert bare(answer)
    assert sent < LIMITS.request + 16 * 2**20  # what the sockets on the way hold


def test_bodies_together_are_bounded_too(service: Running) -> None:
    """Six of 48 MB are 288 MB; they are held back a byte before their end, so that none leaves the memory early."""

    def send(answers: list[bytes]) -> None:
        with service.tls() as connection, suppress(OSError):
            connection.sendall(f"{POST}content-length: {48_000_000}\r\n\r\n".encode())
            with suppress(OSError):
                connection.sendall(bytes(47_999_999))
            answers.append(everything(connection))

    answers: list[bytes] = []
    with service.bounded():
        senders = [threading.Thread(target=send, args=(answers,)) for _ in range(6)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
    assert len(answers) == 6
    assert {status(answer) for answer in answers} <= {408, 503}
    assert 503 in map(status, answers)


@pytest.mark.parametrize("length", ["-1", "many", "1e3", "²", "9" * 30, str(LIMITS.request + 1)])
def test_a_length_that_is_none_or_too_much_is_refused_at_once(service: Running, length: str) -> None:
    assert status(ask(service, f"{POST}content-length: {length}\r\n\r\n")) in (400, 413)


HALVES: dict[str, Callable[[Running], socket.socket]] = {
    "connections": Running.plain,
    "handshakes": lambda service: sent(service.plain(), b"\x16\x03\x01"),
    "requests without a byte": Running.tls,
    "heads": lambda service: sent(service.tls(), b"POST /message HTTP/1.1\r\nhost"),
    "bodies": lambda service: sent(service.tls(), f"{POST}content-length: 9\r\n\r\n12".encode()),
    "next heads": lambda service: sent(answered(service), b"POST /mess"),
    "requests of connections that were answered": lambda service: answered(service),
}


def sent(connection: socket.socket, data: bytes) -> socket.socket:
    connection.sendall(data)
    return connection


def answered(service: Running) -> ssl.SSLSocket:
    connection = service.tls()
    connection.sendall(f"{POST}content-length: 3\r\n\r\nabc".encode())
    assert connection.recv(2**16)
    return connection


@pytest.mark.parametrize("half", HALVES)
def test_what_was_only_begun_ends_and_good_callers_are_answered_meanwhile(service: Running, half: str) -> None:
    with service.bounded(), ExitStack() as stack:
        begun = [stack.enter_context(HALVES[half](service)) for _ in range(8)]
        start = time.monotonic()
        assert service.works()
        answers = [everything(connection) for connection in begun]
        assert time.monotonic() - start < LIMITS.idle + LIMITS.head + 1.5
    if half == "bodies":
        assert {status(answer) for answer in answers} == {408}


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(400), POST.encode()])
def test_a_byte_now_and_then_does_not_keep_a_connection(service: Running, data: bytes) -> None:
    """Of a handshake, and of a head."""
    start, closed = time.monotonic(), False
    with service.tls() if data.startswith(b"POST") else service.plain() as connection:
        connection.settimeout(0.1)
        for place in range(len(data)):
            with suppress(TimeoutError):
                try:
                    connection.sendall(data[place : place + 1])
                    closed = not connection.recv(1)
                except ConnectionError:
                    closed = True
            if closed:
                break
    assert closed
    assert LIMITS.head - 1 < time.monotonic() - start < LIMITS.head + 1


@pytest.mark.parametrize("half", ["handshakes", "heads", "requests without a byte"])
def test_more_connections_than_there_is_room_for_neither_fill_it_nor_keep_others_out(service: Running, half: str) -> None:
    """Who has shown no token makes room: 200 connections a second where 32 fit, for two seconds at least."""
    with service.bounded(), ExitStack() as stack:
        stop, opened = threading.Event(), []

        def flood() -> None:
            while not stop.wait(0.005) and len(opened) < 600:
                with suppress(OSError):
                    opened.append(stack.enter_context(HALVES[half](service)))

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            end = time.monotonic() + 2
            while time.monotonic() < end or len(opened) < 3 * LIMITS.connections:
                assert service.works()
                assert len(service.process.net_connections("tcp")) <= 2 * LIMITS.connections + 1
        finally:
            stop.set()
            flooding.join()


def test_who_is_at_work_is_not_the_one_to_make_room(service: Running) -> None:
    connection = service.tls()
    with connection, ExitStack() as stack:
        connection.sendall(f"{POST}content-length: 4\r\n\r\nslow".encode())
        time.sleep(0.1)
        for _ in range(2 * LIMITS.connections):
            stack.enter_context(service.plain())
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")


def test_work_ends_when_its_caller_has_gone(service: Running) -> None:
    before = service.state()["left"]
    with service.tls() as connection:
        connection.sendall(f"{POST}content-length: 4\r\n\r\nwork".encode())
        time.sleep(0.3)
    start = time.monotonic()
    while service.state()["left"] == before:
        assert time.monotonic() - start < 3
        time.sleep(0.05)


def test_one_request_is_handled_at_a_time_and_who_would_wait_too_long_is_told(service: Running) -> None:
    """Eight of 0.4 s: after 1.5 s four or five have been answered, and the others are told that it is busy."""
    answers: list[bytes] = []

    def call() -> None:
        answers.append(ask(service, f"{POST}connection: close\r\ncontent-length: 4\r\n\r\n", b"slow"))

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert service.state()["most"] == 1
    assert {status(answer) for answer in answers} == {200, 503}
    assert all(bare(answer) for answer in answers if status(answer) == 503)


def test_a_busy_service_is_asked_again(service: Running) -> None:
    results: list[bytes] = []
    callers = [threading.Thread(target=lambda: results.append(service.transport()(b"slow"))) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert results == [b"wols"] * 6


@pytest.mark.parametrize(
    "given", ["", TOKEN, f"Basic {TOKEN}", "Bearer ", "Bearer guess", f"Bearer {TOKEN} ü", f"Bearer  {TOKEN}"]
)
def test_without_the_token_in_its_scheme_a_request_is_refused_before_its_body_is_read(service: Running, given: str) -> None:
    request = f"POST /message HTTP/1.1\r\nhost: client\r\nauthorization: {given}\r\nexpect: 100-continue\r\n"
    answer = ask(service, f"{request}content-type: application/msgpack\r\ncontent-length: 3\r\n\r\n")
    assert status(answer) == 401  # and not 100
    assert bare(answer)


@pytest.mark.parametrize("token", ["", " ", "a b", "a\nb", "a\r\nx: y", "ü", "a\0"])
def test_no_service_is_made_with_a_token_that_a_header_can_not_hold(token: str) -> None:
    with pytest.raises(ValueError, match="visible ASCII") as error:
        create_app(lambda data, gone: data, token)
    assert not token.strip() or token not in str(error.value)


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/", ALLOWED, 404),
        ("POST", "/message/", ALLOWED, 404),
        ("GET", "/docs", ALLOWED, 404),
        ("GET", "/openapi.json", "", 404),
        ("GET", "/message", ALLOWED, 405),
        ("HEAD", "/message", ALLOWED, 405),
        ("POST", "/message", ALLOWED.replace("msgpack", "json"), 415),
        ("POST", "/message", ALLOWED + "content-encoding: gzip\r\n", 415),
        ("POST", "/message", ALLOWED + "content-encoding: identity\r\n", 415),
        ("POST", "/message", ALLOWED + "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n", 200),
    ],
)
def test_nothing_but_messages_is_served(service: Running, method: str, path: str, headers: str, expected: int) -> None:
    closing = "" if "upgrade" in headers else "connection: close\r\n"
    answer = ask(service, f"{method} {path} HTTP/1.1\r\nhost: client\r\n{headers}{closing}content-length: 1\r\n\r\n", b"a")
    assert status(answer) == expected
    assert expected == 200 or bare(answer)


def test_an_unexpected_failure_says_nothing_of_itself(service: Running) -> None:
    answer = ask(service, f"{POST}content-length: 4\r\n\r\n", b"fail")
    assert status(answer) == 500
    assert bare(answer)
    assert HIDDEN.encode() not in answer
    with pytest.raises(ClientError, match=r"refused with status 500$"):
        service.transport()(b"fail")


def test_a_reply_tells_no_version(service: Running) -> None:
    answer = ask(service, f"{POST}connection: close\r\ncontent-length: 3\r\n\r\n", b"abc")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == b"cba"
    names = sorted(line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:])
    assert names == [b"connection", b"content-length", b"content-type"]


def test_who_does_not_take_the_reply_keeps_neither_memory_nor_others_waiting(service: Running) -> None:
    with service.bounded(), ExitStack() as stack:
        for _ in range(24):  # 288 MB
            connection = stack.enter_context(service.tls())
            connection.sendall(f"{POST}content-length: 4\r\n\r\nlong".encode())
        time.sleep(1.0)
        assert service.works()


def test_a_port_that_is_taken_and_a_certificate_that_is_missing_end_the_service_with_an_error(service: Running) -> None:
    def start(port: int) -> None:
        serve(lambda data, gone: data, TOKEN, "127.0.0.1", port, Path("missing.pem"), Path("missing.pem"))

    with pytest.raises(OSError, match="Address already in use"):
        start(service.port)
    with pytest.raises(OSError, match="No such file"):
        start(0)


def test_old_tls_is_refused(service: Running) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with service.plain() as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection)
