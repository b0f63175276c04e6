"""The same messages over HTTPS: a client's service, and the server's transport to it.

One route, ``POST /message``: the request's bytes in, the reply's bytes out, a bearer token on every call. What a
message means is decided in ``mor.federation.client`` alone, so HTTP and in-process clients answer alike to the bit.
"""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path

import httpx
from fastapi import FastAPI, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from mor.federation.client import ClientError, Transport

CONTENT_TYPE = "application/msgpack"
LARGEST_REQUEST = 64 * 2**20  # bytes


def create_app(handle: Transport, token: str) -> FastAPI:
    """The client's service around ``ClientService.handle``; answers 401 without the right token, 413 to giants."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/message")
    async def message(request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "the bearer token is missing or wrong")
        if int(request.headers.get("content-length", 0)) > LARGEST_REQUEST:
            raise HTTPException(413, f"a request has at most {LARGEST_REQUEST} bytes")
        data = await request.body()
        return Response(await run_in_threadpool(handle, data), media_type=CONTENT_TYPE)

    return app


@dataclass(frozen=True)
class HttpsTransport:
    """Bytes to bytes over HTTPS; ``authority`` is the PEM file of the certificate authority to trust, None for the system's.

    Tries again with growing pauses where the network fails; raises ``ClientError`` when it gives up or is refused.
    """

    url: str
    token: str
    authority: Path | None = None
    timeout: float = 60.0  # seconds
    attempts: int = 4

    def __post_init__(self) -> None:
        if not self.url.startswith("https://"):
            raise ValueError(f"{self.url}: a client is reached over https:// only")

    def __call__(self, data: bytes) -> bytes:
        send = retry(
            retry=retry_if_exception_type(httpx.TransportError),
            stop=stop_after_attempt(self.attempts),
            wait=wait_exponential_jitter(multiplier=0.2, max=5.0),
            reraise=True,
        )(self._send)
        try:
            return send(data)
        except httpx.HTTPStatusError as error:
            raise ClientError(f"{self.url}: refused with status {error.response.status_code}") from None
        except httpx.TransportError as error:
            raise ClientError(f"{self.url}: no answer after {self.attempts} attempts: {error}") from None

    def _send(self, data: bytes) -> bytes:
        context = ssl.create_default_context(cafile=str(self.authority) if self.authority else None)
        with httpx.Client(verify=context, timeout=self.timeout, trust_env=False) as client:
            headers = {"authorization": f"Bearer {self.token}", "content-type": CONTENT_TYPE}
            response = client.post(f"{self.url}/message", content=data, headers=headers)
            response.raise_for_status()
            return response.content
