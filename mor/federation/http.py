"""The same messages over HTTPS: the server's transport to a client's service, which may be hostile (``endpoint.py`` is that).

One route, ``POST /message``: the request's bytes out, the reply's bytes in, a bearer token on every call. What a
message means is decided in ``mor.federation.remote`` alone, so HTTP and in-process clients answer alike to the bit.

A reply costs at most ``largest_reply`` bytes and a call at most ``deadline`` seconds, whatever the other side sends and
however slowly: nothing is decompressed, no redirect followed, no proxy of the environment used, and no text that the
other side chose is shown. TLS is taken out of the socket's hands (``ssl.MemoryBIO``), for the deadline to hold in
every single read and for the bytes to be counted as the network carries them.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpcore
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from mor.errors import ConfigError
from mor.federation.messages import MOST_REPLY_BYTES
from mor.federation.remote import ClientError

CONTENT_TYPE = "application/msgpack"
ROUTE = "/message"
DEADLINE = 240.0  # seconds a call may take: attempts, pauses and the wait for calls of other threads included
CONNECT = 10.0  # seconds that TCP may take to connect, and then the TLS handshake
KEPT = 60.0  # seconds that an idle connection is kept; a service keeps it a little longer
PIECE = 64 * 2**10  # bytes at a time

T = TypeVar("T")


class _Busy(Exception):
    """The service answered 503: it has done nothing and asks to be asked later."""


PASSING = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.RemoteProtocolError, _Busy)


def check_token(token: str) -> None:
    """Raise ``ConfigError``, which never holds the token, where it can't be a header's value."""
    if not re.fullmatch(r"[!-~]+", token):
        raise ConfigError(
            "the bearer token must be visible ASCII characters and nothing else, no space or line break either; "
            "`openssl rand -hex 32` makes a good one"
        )


@dataclass(frozen=True)
class HttpsTransport:
    """Bytes to bytes over HTTPS; ``authority`` is the PEM file of the certificate authority to trust, None for the system's.

    The connection is kept and made anew where it was closed. Threads take turns. Pickled without its connection.
    Tries again with growing pauses where the network fails or the service is busy; raises ``ClientError`` when it gives
    up or is refused, and ``ConfigError`` where it can't be made.
    """

    url: str
    token: str = field(repr=False)
    authority: Path | None = None
    deadline: float = DEADLINE
    attempts: int = 4
    largest_reply: int = MOST_REPLY_BYTES
    _network: _Network = field(init=False, repr=False, compare=False)
    _pool: httpcore.ConnectionPool = field(init=False, repr=False, compare=False)
    _turn: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        check_url(self.url)
        check_token(self.token)
        network = _Network()
        pool = httpcore.ConnectionPool(
            trusting(self.authority), max_connections=1, keepalive_expiry=KEPT, network_backend=network
        )
        weakref.finalize(self, pool.close)
        object.__setattr__(self, "_network", network)
        object.__setattr__(self, "_pool", pool)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.token, self.authority, self.deadline, self.attempts, self.largest_reply)

    def close(self) -> None:
        """Give the kept connection up; the next call makes another."""
        self._pool.close()

    @property
    def socket_bytes(self) -> tuple[int, int]:
        """What TCP carried so far, TLS and headers included: bytes received from the client, bytes sent to it.

        Left out is what comes after this side has closed a connection: the other's farewell of 24 bytes.
        """
        return self._network.up, self._network.down

    def __call__(self, data: bytes) -> bytes:
        until = time.monotonic() + self.deadline
        if not self._turn.acquire(timeout=self.deadline):
            raise ClientError(f"{self.url}: calls of other threads took all of {self.deadline:g} s")
        try:
            self._network.until = until
            return self._insist(data)
        except ssl.SSLCertVerificationError as error:
            raise ClientError(f"{self.url}: its certificate is not trusted: {error.reason}, {error.verify_message}") from None
        finally:
            self._turn.release()

    def _insist(self, data: bytes) -> bytes:
        def give_up(state: RetryCallState) -> bool:
            return state.attempt_number >= self.attempts or time.monotonic() + state.upcoming_sleep >= self._network.until

        pauses = wait_exponential_jitter(multiplier=0.2, max=5.0)
        insisting = Retrying(retry=retry_if_exception_type(PASSING), stop=give_up, wait=pauses, reraise=True)
        try:
            return insisting(self._send, data)
        except PASSING as error:
            tried = f"{insisting.statistics['attempt_number']} attempts in at most {self.deadline:g} s"
            raise ClientError(f"{self.url}: no answer after {tried}: {_what_happened(error)}") from None

    def _send(self, data: bytes) -> bytes:
        asked = [("authorization", f"Bearer {self.token}"), ("content-type", CONTENT_TYPE), ("accept-encoding", "identity")]
        limits = {"timeout": {"connect": CONNECT}}
        where = f"{self.url.rstrip('/')}{ROUTE}"
        with self._pool.stream("POST", where, headers=asked, content=data, extensions=limits) as response:
            if response.status == HTTPStatus.SERVICE_UNAVAILABLE:
                raise _Busy
            if response.status != HTTPStatus.OK:
                raise ClientError(f"{self.url}: refused with status {response.status}")
            headers = {name.lower(): value.lower() for name, value in response.headers}
            if headers.get(b"content-encoding", b"identity") != b"identity":
                raise ClientError(f"{self.url}: the reply has a content-encoding; expected none")
            if headers.get(b"content-type") != CONTENT_TYPE.encode():
                raise ClientError(f"{self.url}: the reply's content-type is not {CONTENT_TYPE}")
            reply = bytearray()
            for piece in response.iter_stream():
                reply += piece
                if len(reply) > self.largest_reply:
                    raise ClientError(f"{self.url}: the reply has more than {self.largest_reply} bytes")
            return bytes(reply)


def check_url(url: str) -> None:
    """Raise ``ConfigError`` unless it is https://host[:port][/path] in ASCII; what may be a password is not repeated."""
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        raise ConfigError(
            "a client's url is https://host, with :port and /path where needed; one of them can't be read"
        ) from None
    if "@" in parts.netloc:
        raise ConfigError("a client's url holds no user name or password; it has a bearer token instead")
    if parts.scheme != "https":
        raise ConfigError("a client is reached over https:// only")
    if not parts.hostname or not re.fullmatch(r"[!-~]+", url) or parts.query or parts.fragment:
        raise ConfigError("a client's url is https://host, with :port and /path where needed, in ASCII")


def trusting(authority: Path | None) -> ssl.SSLContext:
    """TLS 1.2 or later, with a certificate of ``authority`` for the very host; raises ``ConfigError`` without that file."""
    try:
        context = ssl.create_default_context(cafile=str(authority) if authority else None)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"{authority}: no PEM file of a certificate authority: {_reason(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _reason(error: OSError) -> str:
    """The operating system's or OpenSSL's own words."""
    words = error.reason if isinstance(error, ssl.SSLError) else error.strerror
    return words or type(error).__name__


def _what_happened(error: Exception) -> str:
    """In our words alone: an error of the protocol quotes the other side."""
    match error:
        case _Busy():
            return f"refused with status {HTTPStatus.SERVICE_UNAVAILABLE.value}, busy"
        case httpcore.TimeoutException():
            return "timed out"
        case httpcore.NetworkError():
            return str(error)
        case _:
            return "closed without a whole HTTP reply"


class _Network(httpcore.NetworkBackend):
    """Opens sockets, counts what they carry, and ends whatever would outlast the call that is under way."""

    def __init__(self) -> None:
        self.up = self.down = 0  # bytes from the client, bytes to it
        self.until = 0.0  # on the clock of ``time.monotonic``

    def end(self, timeout: float | None) -> float:
        """When a step that may take ``timeout`` seconds must have ended."""
        return self.until if timeout is None else min(self.until, time.monotonic() + timeout)

    def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_more: Any, **_named: Any) -> _Stream:
        end = self.end(timeout)
        problem: OSError = TimeoutError()
        try:
            for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                connection = socket.socket(family, kind, protocol)
                try:
                    connection.settimeout(_left(end))
                    connection.connect(address)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return _Stream(connection, self)
                except OSError as error:
                    connection.close()
                    problem = error
            raise problem
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except OSError as error:
            raise httpcore.ConnectError(_reason(error)) from None


def _left(end: float) -> float:
    """Seconds until then; raises ``TimeoutError`` where there are none."""
    if (left := end - time.monotonic()) <= 0:
        raise TimeoutError
    return left


class _Stream(httpcore.NetworkStream):
    """TLS in memory over a socket that is read and written here, and nowhere else."""

    def __init__(self, connection: socket.socket, network: _Network) -> None:
        self._socket, self._network = connection, network
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: ssl.SSLObject  # from ``start_tls`` on: a url is https

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        self._tls = ssl_context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        try:
            self._carry(httpcore.ConnectError, timeout, self._tls.do_handshake)
        except BaseException:
            with suppress(OSError):
                self._flush(self._network.end(1.0))  # the alert that says why
            self.close()
            raise
        return self

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._carry(httpcore.ReadError, timeout, self._tls.read, max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        while rest:
            rest = rest[self._carry(httpcore.WriteError, timeout, self._tls.write, rest[:PIECE]) :]

    def _carry(self, failed: type[httpcore.NetworkError], timeout: float | None, step: Callable[..., T], *given: Any) -> T:
        """Take one step of TLS, and to and from the socket what it needs for that."""
        end = self._network.end(timeout)
        try:
            while True:
                try:
                    done = step(*given)
                except ssl.SSLWantReadError:
                    self._flush(end)
                    self._fill(end)
                else:
                    self._flush(end)
                    return done
        except TimeoutError:
            raise httpcore.ReadTimeout from None
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            raise failed(_reason(error)) from None

    def _flush(self, end: float) -> None:
        rest = memoryview(self._outgoing.read())
        while rest:
            self._socket.settimeout(_left(end))
            sent = self._socket.send(rest)
            self._network.down += sent
            rest = rest[sent:]

    def _fill(self, end: float) -> None:
        self._socket.settimeout(_left(end))
        if data := self._socket.recv(PIECE):
            self._network.up += len(data)
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def close(self) -> None:
        with suppress(OSError):  # what is here already was carried too: the other side's farewell
            self._socket.setblocking(False)
            self._network.up += len(self._socket.recv(PIECE))
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                return self._tls
            case "is_readable":  # of an idle connection: it was closed, or broken
                return self._readable()
        return None

    def _readable(self) -> bool:
        try:
            self._socket.setblocking(False)
            self._socket.recv(1, socket.MSG_PEEK)
        except OSError as error:
            return not isinstance(error, BlockingIOError)
        return True
