"""The runs, in a browser: MLflow's UI on this machine, behind the login of `.prefect/login`. Ctrl-C ends it."""

from __future__ import annotations

import os
import threading
from typing import Annotated

import typer
from rich.console import Console

from mor.errors import UserError

console = Console(stderr=True, soft_wrap=True)


def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Start it, say where it is, and wait for Ctrl-C."""
    from tasks.project import guard, processes, servers

    if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http"):
        raise UserError("MLFLOW_TRACKING_URI is a server's address: open that in a browser, or unset the variable")
    processes.heed_signals()
    service = servers.mlflow_at(f"http://127.0.0.1:{port}", "ui", "choose another with --port")
    with processes.supervise([service]):
        servers.wait_for(service)
        console.print(f"MLflow: http://127.0.0.1:{port}", highlight=False)
        console.print(f"Login:  {guard.login_hint()}", highlight=False)
        threading.Event().wait()
