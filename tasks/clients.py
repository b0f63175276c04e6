"""The clients of this run: services in this process, or behind HTTPS where ``params.yaml`` gives a ``url``."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from mor.config import ConfigError, Params, UserError, load_params
from mor.data.schema import Answer, load_images, read_rows
from mor.federation.client import ClientService, RemoteClient, Transport
from mor.federation.http import HttpsTransport, check_token
from mor.federation.ledger import Ledger
from mor.federation.endpoint import serve
from mor.rewards.model import load_reward_model
from mor.vlm.load import Vlm
from tasks import paths
from tasks.rewards import split
from tasks.runtime import task


def connect_clients(params: Params, ledger: Ledger, base: Vlm | None = None) -> list[RemoteClient]:
    """Clients in the order of ``params.clients``; ``base`` spares those in this process loading it once more."""
    remotes = []
    for name, client in params.clients.items():
        transport: Transport
        if client.url is None:
            transport = client_service(params, name, base).handle
        else:
            authority = Path(client.authority) if client.authority else None
            transport = HttpsTransport(client.url, token(name), authority)
        remotes.append(RemoteClient(name, transport, ledger))
    return remotes


def client_service(params: Params, name: str, base: Vlm | None = None) -> ClientService:
    """One client's side: its reward model, the pairs it kept back and its answer key."""
    _, kept = split(params, name)
    images, answers = load_images(paths.client_folder(name), kept), paths.client_answers(name)

    def states() -> torch.Tensor:
        public_base = base or Vlm.load(params.base, params.evaluation.batch_size)
        return public_base.prompt_states([pair.prompt for pair in kept], images)

    return ClientService(
        load_reward_model(paths.reward_folder(name)),
        list(params.clients).index(name),
        kept,
        images,
        states,
        {row.id: row for row in read_rows(answers, Answer)} if answers.exists() else {},
    )


def token(name: str) -> str:
    """The bearer token that server and client share, from ``MOR_TOKEN_<CLIENT>``; raises ``ConfigError``."""
    variable = f"MOR_TOKEN_{name.upper()}"
    if not os.environ.get(variable):
        raise ConfigError(f"client {name}: set {variable} to the bearer token that its service was started with")
    try:
        check_token(os.environ[variable])
    except ConfigError as error:
        raise ConfigError(f"client {name}: {variable}: {error}") from None
    return os.environ[variable]


@task
def serve_client(name: str, host: str, port: int, certificate: str, key: str) -> None:
    """Answer the server's messages over HTTPS until stopped."""
    secret = token(name)
    service = client_service(load_params(paths.PARAMS), name)
    try:
        serve(lambda data, gone: service.handle(data), secret, host, port, Path(certificate), Path(key))
    except OSError as error:
        raise UserError(f"no service at {host}:{port} with {certificate} and {key}: {error}; name others") from None
