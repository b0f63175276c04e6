"""Who may use the servers that this project starts: their owner, by a login that is made once.

A server on 127.0.0.1 is open to every user of the machine, and to every page that a browser on it shows. Hence

1. a login, which both servers ask for: ``PREFECT_SERVER_API_AUTH_STRING``, or else the one in ``.prefect/login``;
2. the ``Host`` header must name this machine (a page can point a name of its own at 127.0.0.1: DNS rebinding);
3. an ``Origin`` header, which browsers send for the pages of others, must be the server's own;
4. what changes something in Prefect needs a CSRF token, which Prefect's clients and its UI fetch with the login.

Prefect brings 1 and 4. MLflow brings 1 only with Flask-WTF and a user database of its own, so its app is wrapped here. The
login goes from process to process in the environment, never on a command line, where every user of the machine could read it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from mor.errors import UserError
from tasks.project import paths

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

OWN_LOGIN, CLIENT_LOGIN = "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"
LOGIN = paths.PREFECT_HOME / "login"
HOSTS = ("127.0.0.1", "localhost")
ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, "-m", "uvicorn", "--factory", "--app-dir", str(ROOT), "--no-server-header"]
PREFECT_SERVER = [*SERVE, "tasks.project.guard:prefect_app"]  # both take a listening socket: --fd
MLFLOW_SERVER = [*SERVE, "tasks.project.guard:mlflow_app"]


# --- the login -----------------------------------------------------------------------------------------------------------


def home() -> Path:
    """``.prefect``, which only its owner may enter: it holds the login, Prefect's history and the services' logs."""
    paths.PREFECT_HOME.mkdir(mode=0o700, exist_ok=True)
    paths.PREFECT_HOME.chmod(0o700)
    return paths.PREFECT_HOME.resolve()


def login() -> str:
    """``user:password`` of the servers that are started here; raises ``UserError`` where it is none or is known to others."""
    if own := os.environ.get(OWN_LOGIN):
        if ":" not in own.strip(":"):
            raise UserError(f"{OWN_LOGIN} must be <user>:<password>, as Prefect and browsers ask for it; mend or unset it")
        return own
    folder = home()
    if not LOGIN.exists():
        with NamedTemporaryFile("w", dir=folder) as draft, suppress(FileExistsError):  # of mode 600
            draft.write(f"mor:{secrets.token_urlsafe(32)}\n")
            draft.flush()
            os.link(draft.name, LOGIN)  # whole or not at all, and never in place of one that is there
    status = LOGIN.stat()
    if status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise UserError(f"{LOGIN}: other users of this machine may know it; delete the file, and the next start makes another")
    return LOGIN.read_text().strip()


def login_hint() -> str:
    """Where the user finds the login."""
    where = f"that of {OWN_LOGIN}" if os.environ.get(OWN_LOGIN) else f"in the file {LOGIN}"
    return f"{where}, as user:password (Prefect's page asks for both in one line)"


@contextmanager
def client_environment(address: str) -> Iterator[None]:
    """Within the block, flows of this process and of those below it report to the server at ``address`` that we started."""
    own = {"PREFECT_API_URL": f"{address}/api", CLIENT_LOGIN: login(), "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true"}
    before = {name: value for name, value in os.environ.items() if name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            os.environ.pop(name, None)
        os.environ.update(before)


def prefect_environment(address: str) -> dict[str, str]:
    """What the Prefect server that answers at ``address`` is started with."""
    port = address.rpartition(":")[2]
    return {
        "PREFECT_HOME": str(home()),
        "PREFECT__SERVER_FINAL": "1",
        "PREFECT_API_URL": f"{address}/api",  # the UI asks there
        OWN_LOGIN: login(),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}:{port}" for host in HOSTS),
    }


def prefect_client(address: str) -> SyncPrefectClient:
    """Prefect's own client for the server at ``address``, with the login of this process's flows."""
    from prefect.client.orchestration import SyncPrefectClient

    given = os.environ.get(CLIENT_LOGIN)
    return SyncPrefectClient(f"{address}/api", auth_string=given, httpx_settings={"trust_env": False})


# --- the servers, started by Uvicorn -------------------------------------------------------------------------------------


def prefect_app() -> ASGIApp:
    """Prefect's API and UI; it asks for the login itself."""
    from prefect.server.api.server import create_app

    return guarded(create_app())


def mlflow_app() -> ASGIApp:
    """MLflow's API and UI, set up as ``mlflow server`` does, on the project's store or that of ``MLFLOW_TRACKING_URI``."""
    from mlflow.server import constants
    from mlflow.tracking._tracking_service.utils import _get_default_tracking_uri

    store = os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("MLFLOW_BACKEND_STORE_URI") or _get_default_tracking_uri()
    artifacts = "mlflow-artifacts:/"
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: store,
        constants.REGISTRY_STORE_URI_ENV_VAR: store,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACT_ROOT_ENV_VAR: artifacts,
        constants.ARTIFACTS_DESTINATION_ENV_VAR: os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", "./mlartifacts"),
        "_MLFLOW_SGI_NAME": "uvicorn",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(f"{host}:*" for host in HOSTS),
        "MLFLOW_SERVER_X_FRAME_OPTIONS": "DENY",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes of which nothing here makes use
    }
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    initialize_backend_stores(store, store, artifacts)
    return guarded(app, login())


def guarded(app: ASGIApp, expected: str | None = None) -> ASGIApp:
    """The app for this machine's own pages, and with ``expected`` for who knows that login; ``/health`` is open."""
    return TrustedHostMiddleware(Guard(app, expected), allowed_hosts=HOSTS, www_redirect=False)


class Guard:
    """Refuses requests from the pages of others with 403, and those without the login with 401."""

    def __init__(self, app: ASGIApp, expected: str | None) -> None:
        self.app, self.expected = app, expected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        own = {f"http://{host}:{scope['server'][1]}" for host in HOSTS}
        if headers.get("origin", next(iter(own))) not in own:
            await PlainTextResponse("a page of another site asks", 403)(scope, receive, send)
        elif self.expected and scope["path"] != "/health" and not knows(headers.get("authorization", ""), self.expected):
            ask = {"WWW-Authenticate": 'Basic realm="MoR", charset="UTF-8"'}
            await PlainTextResponse(f"wants the login of {LOGIN}", 401, ask)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def knows(authorization: str, expected: str) -> bool:
    """Whether an ``Authorization: Basic ...`` header holds ``expected``, in the same time whatever it holds."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        given = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return False
    return scheme.lower() == "basic" and hmac.compare_digest(given, expected.encode())
