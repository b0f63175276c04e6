"""The clients of this run: services in this process, or behind HTTPS where ``params.yaml`` gives a ``url``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mor.config import ConfigError, Params, UserError, load_params
from mor.data.schema import Answer, Preference, load_images, read_rows
from mor.federation.endpoint import serve
from mor.federation.http import HttpsTransport, check_token
from mor.federation.ledger import Ledger
from mor.federation.remote import RemoteClient, Transport
from mor.federation.service import ClientService
from mor.rewards.model import load_reward_model
from mor.seeds import stream
from mor.vlm.load import Vlm
from tasks.project import paths
from tasks.project.decorators import task
from tasks.stages.reward import split


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


def client_service(
    params: Params, name: str, base: Vlm | None = None, noise: np.random.Generator | None = None
) -> ClientService:
    """One client's side: its reward model, the pairs it kept back, what it shares, and its answer key.

    ``noise`` blurs its mean: derived from the seed where both sides are one process, which has nothing to hide from itself.
    """
    trained, kept = split(params, name)
    folder, answers = paths.client_folder(name), paths.client_answers(name)
    told = [*kept, *trained][: max(params.boundary.prompts, 1)]

    def features() -> torch.Tensor:
        public_base = base or Vlm.load(params.base, params.evaluation.batch_size)
        return public_base.prompt_states([pair.prompt for pair in told], load_images(folder, told))

    shared = shared_anchors(params, name, [*kept, *trained])
    return ClientService(
        load_reward_model(paths.reward_folder(name)),
        params.boundary,
        kept,
        load_images(folder, kept),
        features,
        {row.id: row for row in read_rows(answers, Answer)} if answers.exists() else {},
        list(zip(shared, load_images(folder, shared), strict=True)),
        noise or stream(params.seed, "means", name),
    )


def shared_anchors(params: Params, name: str, pairs: Sequence[Preference]) -> list[Preference]:
    """The pairs that the client lists as shared; raises ``ConfigError`` for an id that it does not have."""
    known = {pair.id: pair for pair in pairs}
    if missing := [id_ for id_ in params.clients[name].shared_anchors if id_ not in known]:
        raise ConfigError(
            f"params.yaml: clients.{name}.shared_anchors: {len(missing)} of its ids are in no row of "
            f"{paths.validated_client(name)}; list ids of {paths.client_preferences(name)}"
        )
    return [known[id_] for id_ in params.clients[name].shared_anchors]


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
    service = client_service(load_params(paths.PARAMS), name, noise=np.random.default_rng())
    try:
        serve(service.handle, secret, host, port, Path(certificate), Path(key))
    except OSError as error:
        raise UserError(f"no service at {host}:{port} with {certificate} and {key}: {error}; name others") from None
