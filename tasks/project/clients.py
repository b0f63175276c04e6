"""The clients of this run: services in this process, or behind HTTPS where ``params.yaml`` gives a ``url``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from mor.config import Params, load_params
from mor.data.public import PublicPrompt
from mor.data.schema import Answer, Preference, Prompt, load_images, read_rows
from mor.data.split import split_pairs
from mor.errors import ConfigError, UserError
from mor.federation.endpoint import serve
from mor.federation.http import HttpsTransport, check_token
from mor.federation.ledger import Ledger
from mor.federation.remote import RemoteClient, Transport
from mor.federation.server import Server, Settings, prompt_features
from mor.federation.service import ClientService
from mor.rewards.kinds import load_reward_model
from mor.rewards.model import ranked_rightly
from mor.seeds import stream
from mor.vlm.load import Vlm
from tasks.project import paths
from tasks.project.decorators import task


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


def server_of(
    params: Params,
    base: Vlm | None,
    ledger: Ledger,
    features: torch.Tensor | None = None,
    clients: list[RemoteClient] | None = None,
) -> Server:
    """What the server of this project has; ``base`` may be left out where ``features`` of the prompts are given.

    ``clients`` are those of ``params`` unless others are given.
    """
    prompts = public_prompts()
    settings = Settings(params.seed, params.router, params.grpo, params.evaluation.batch_size)
    return Server(
        params.base,
        connect_clients(params, ledger, base) if clients is None else clients,
        prompts,
        prompt_features(base or Vlm.load(params.base), prompts) if features is None else features,
        settings,
        ledger,
        owners(params.clients) if params.router.kind == "oracle" else {},
    )


def public_prompts() -> list[PublicPrompt]:
    """The server's validated prompts with their images."""
    rows = read_rows(paths.VALIDATED_PUBLIC, Prompt)
    images = load_images(paths.PUBLIC, rows)
    return [PublicPrompt(row.id, row.prompt, image, row.category) for row, image in zip(rows, images, strict=True)]


def owners(clients: Iterable[str]) -> dict[str, list[str]]:
    """Which clients have pairs of each category: what only an oracle could know."""
    table: dict[str, list[str]] = {}
    for client in clients:
        for category in {row.category for row in read_rows(paths.validated_client(client), Preference)} - {None}:
            table.setdefault(str(category), []).append(client)
    return table


def pairs_of(params: Params, client: str) -> tuple[list[Preference], list[Preference]]:
    """A client's pairs for training, and those it keeps back."""
    pairs = read_rows(paths.validated_client(client), Preference)
    return split_pairs(pairs, params.rewards.validation_share, params.seed, client)


def client_service(
    params: Params, name: str, base: Vlm | None = None, noise: np.random.Generator | None = None
) -> ClientService:
    """One client's side: its reward model, the pairs it kept back, what it shares, and its answer key.

    ``noise`` blurs its mean: derived from the seed where both sides are one process, which has nothing to hide from itself.
    """
    trained, kept = pairs_of(params, name)
    folder, answers = paths.client_folder(name), paths.client_answers(name)
    averaged = [*kept, *trained][: max(params.boundary.prompts, 1)]
    model = load_reward_model(paths.reward_folder(name))
    images = load_images(folder, kept)

    def features() -> torch.Tensor:
        public_base = base or Vlm.load(params.base, params.evaluation.batch_size)
        return public_base.prompt_states([pair.prompt for pair in averaged], load_images(folder, averaged))

    shared = shared_anchors(params, name, [*kept, *trained])
    return ClientService(
        model,
        params.boundary,
        features,
        lambda: ranked_rightly(model, kept, images),
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
        raise ConfigError(f"client {name}: set {variable} to the bearer token that its service and the server share")
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
