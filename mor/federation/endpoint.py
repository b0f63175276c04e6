"""A client's service: ``ClientService.handle`` behind ``POST /message`` over HTTPS, for callers who may be hostile.

Who has not shown the token costs a connection for a few seconds: the request's body is not read, the answer is a bare
status, and where there is no more room the connection goes that has the least time left. ``Door`` sees to that below
TLS and HTTP, since asyncio and uvicorn count no connection before its TLS handshake is done, and uvicorn has no
deadline for a request's head.

Who has shown it costs at most ``Limits.request`` bytes and one call of ``handle`` at a time, which is told when its
caller has gone. No text of an exception leaves the client.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from mor.federation.http import CONTENT_TYPE, ROUTE, check_token
from mor.federation.messages import MOST_BYTES

PIECE = 256 * 2**10  # bytes of a reply handed to the network at a time
GRACE = 10  # seconds that the service, asked to stop, gives the request under way

Handle = Callable[[bytes, Callable[[], bool]], bytes]  # a request, and whether its caller has gone by now, to the reply
Peer = tuple[str, int]  # address and port
Allow = Callable[[Peer, float | None], None]  # how many more seconds a connection may live


@dataclass(frozen=True)
class Limits:
    """What callers may cost."""

    request: int = MOST_BYTES  # bytes of a body, and of all bodies and replies in memory beside the one being made
    connections: int = 128  # at once
    head: float = 10.0  # seconds from connecting to the end of the first request's head, the TLS handshake included
    transfer: float = 60.0  # seconds for a body to arrive, and for a reply to be taken
    queue: float = 30.0  # seconds that a request waits for those that came before it
    idle: int = 75  # seconds that a connection is kept for its next request


def serve(handle: Handle, token: str, host: str, port: int, certificate: Path, key: Path, limits: Limits = Limits()) -> None:
    """Answer until SIGINT or SIGTERM; raises ``OSError`` where the port or the PEM files can't be used."""
    with Door(host, port, limits) as door:
        config = uvicorn.Config(
            create_app(handle, token, limits, door.allow),
            ssl_certfile=certificate,
            ssl_keyfile=key,
            loop="asyncio",  # it calls the door's `accept`
            http="h11",
            ws="none",
            interface="asgi3",
            lifespan="off",
            proxy_headers=False,  # a caller is who is connected
            server_header=False,
            date_header=False,
            access_log=False,
            log_level="error",  # what callers send wrong is no reason to fill a disk
            backlog=limits.connections,
            timeout_keep_alive=limits.idle,
            timeout_graceful_shutdown=GRACE,
        )
        uvicorn.Server(config).run([door])


def create_app(handle: Handle, token: str, limits: Limits = Limits(), allow: Allow = lambda peer, seconds: None) -> ASGIApp:
    """The service as an ASGI application; ``allow`` says how much longer a connection may live, None is for as long as
    its request takes. Raises ``ConfigError`` where the token is none."""
    check_token(token)
    return _Service(handle, f"Bearer {token}".encode(), limits, allow)


class _Service:
    def __init__(self, handle: Handle, authorization: bytes, limits: Limits, allow: Allow) -> None:
        self._handle, self._authorization, self._limits, self._allow = handle, authorization, limits, allow
        self._held = 0  # bytes of all bodies and replies in memory
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            self._admit(request)
            self._allow(scope["client"], None)
            try:
                await self._serve(request, send)
            finally:
                self._allow(scope["client"], self._limits.idle + self._limits.head)
        except ClientDisconnect:
            return
        except HTTPException as refusal:
            await _refuse(refusal.status_code)(scope, receive, send)
        except Exception:
            logging.getLogger(__name__).exception("a request could not be answered")
            await _refuse(HTTPStatus.INTERNAL_SERVER_ERROR)(scope, receive, send)

    def _admit(self, request: Request) -> None:
        """Judge the head; raises ``HTTPException``."""
        if request.scope["path"] != ROUTE:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        if request.method != "POST":
            raise HTTPException(HTTPStatus.METHOD_NOT_ALLOWED)
        if not secrets.compare_digest(request.headers.get("authorization", "").encode(), self._authorization):
            raise HTTPException(HTTPStatus.UNAUTHORIZED)
        if request.headers.get("content-type", "").lower() != CONTENT_TYPE or "content-encoding" in request.headers:
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:18]) > self._limits.request:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    async def _serve(self, request: Request, send: Send) -> None:
        data = await self._receive(request)
        try:
            reply = await self._answer(request, data)
        finally:
            self._held -= len(data)
        self._held += len(reply)
        try:
            await self._reply(reply, send)
        finally:
            self._held -= len(reply)

    async def _receive(self, request: Request) -> bytes:
        """The body, counted in ``_held``."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.transfer):
                async for piece in request.stream():
                    if len(body) + len(piece) > self._limits.request:
                        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                    if self._held + len(piece) > self._limits.request:
                        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE)
                    body += piece
                    self._held += len(piece)
            return bytes(body)
        except BaseException as error:
            self._held -= len(body)
            if isinstance(error, TimeoutError):
                raise HTTPException(HTTPStatus.REQUEST_TIMEOUT) from None
            raise

    async def _answer(self, request: Request, data: bytes) -> bytes:
        """The reply, made in a thread of its own when it is this request's turn."""
        gone = threading.Event()

        async def watch() -> None:
            try:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
            finally:  # also when the service is stopped
                gone.set()

        watching = asyncio.create_task(watch())
        try:
            try:
                async with asyncio.timeout(self._limits.queue):
                    await self._turn.acquire()
            except TimeoutError:
                raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE) from None
            try:
                if gone.is_set():
                    raise ClientDisconnect
                if self._held > self._limits.request:  # replies that are not taken
                    raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE)
                return await run_in_threadpool(self._handle, data, gone.is_set)
            finally:
                self._turn.release()
        finally:
            watching.cancel()

    async def _reply(self, reply: bytes, send: Send) -> None:
        """Hand the reply over as fast as it is taken; who takes too long is left without the rest."""
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(reply)).encode())]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.transfer):
                await send({"type": "http.response.start", "status": HTTPStatus.OK.value, "headers": headers})
                for start in range(0, len(reply), PIECE):
                    await send({"type": "http.response.body", "body": reply[start : start + PIECE], "more_body": True})
                await send({"type": "http.response.body"})


def _refuse(status: int) -> Response:
    """A status and nothing else; what is still to come on that connection is not read."""
    return Response(status_code=status, headers={"connection": "close"})


@dataclass
class _Guest:
    connection: socket.socket
    alarm: asyncio.TimerHandle | None = None

    def allow(self, seconds: float | None) -> None:
        if self.alarm:
            self.alarm.cancel()
        self.alarm = None if seconds is None else asyncio.get_running_loop().call_later(seconds, self.shut)

    def shut(self) -> None:
        """End the connection for both sides; the event loop then finds it closed, whatever TLS and HTTP wait for."""
        self.allow(None)
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class Door(socket.socket):
    """The listening socket, for an event loop that calls ``accept``. It shuts a connection whose time is up. Where
    ``limits.connections`` are open, the one with the least time left makes room; if all are at work, the newcomer goes."""

    def __init__(self, host: str, port: int, limits: Limits) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(fileno=socket.create_server((host, port), family=family).detach())
        self._limits = limits
        self._guests: dict[Peer, _Guest] = {}

    def accept(self) -> tuple[socket.socket, Peer]:
        connection, address = super().accept()
        for peer, guest in list(self._guests.items()):
            if guest.connection.fileno() < 0 or peer == address[:2]:
                guest.allow(None)
                del self._guests[peer]
        if len(self._guests) >= self._limits.connections and not self._make_room():
            connection.close()
            raise ConnectionAbortedError
        self._guests[address[:2]] = guest = _Guest(connection)
        guest.allow(self._limits.head)
        return connection, address

    def close(self) -> None:
        """Let nobody in any more, and let go who has no request under way; a server does this first when it stops."""
        for guest in self._guests.values():
            if guest.alarm:
                guest.shut()
        super().close()

    def _make_room(self) -> bool:
        resting = {peer: guest.alarm.when() for peer, guest in self._guests.items() if guest.alarm}
        if resting:
            self._guests.pop(min(resting, key=resting.__getitem__)).shut()
        return bool(resting)

    def allow(self, peer: Peer, seconds: float | None) -> None:
        """Let a connection live so much longer; None is until further notice."""
        if guest := self._guests.get(peer):
            guest.allow(seconds)
