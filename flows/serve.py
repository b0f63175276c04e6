"""A client's scoring service, until Ctrl-C. Its bearer token is `MOR_TOKEN_<CLIENT>`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tasks.project import command_line, decorators


def serve(
    client: Annotated[str, typer.Argument(help="one of params.yaml")],
    certificate: Annotated[Path, typer.Option(help="PEM file")],
    key: Annotated[Path, typer.Option(help="PEM file")],
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8443,
) -> None:
    """Answer with scores, comparisons, one noised mean and shared anchors; nothing else leaves the client."""
    command_line.known_client(client)
    decorators.flow(name="serve")(answer)(client, host, port, certificate, key)


def answer(client: str, host: str, port: int, certificate: Path, key: Path) -> None:
    """Serve until Ctrl-C."""
    from tasks.project.clients import serve_client

    serve_client(client, host, port, str(certificate), str(key))
