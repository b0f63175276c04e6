"""Fit the first router, before any GRPO round."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file

from mor.config import Params, load_params
from mor.data.schema import Preference, Prompt, load_images, read_rows
from mor.federation.client import ClientError, RemoteClient
from mor.federation.control import control_shares, not_above_chance
from mor.federation.ledger import Ledger
from mor.routing.fit import apply_updates, fit_bradley_terry, new_network, server_optimiser
from mor.routing.router import Router, StaticNetwork
from mor.seeds import integer, stream
from mor.vlm.load import Vlm
from tasks import paths
from tasks.checkpoints import move_in
from tasks.clients import connect_clients
from tasks.runtime import task
from tasks.tracking import stage_run


def fit_federated(router: Router, clients: list[RemoteClient], params: Params) -> Router:
    """Rounds of client updates, averaged by the server; a client that does not answer is left out of the round.

    Raises ``ClientError`` where none answers.
    """
    assert router.network is not None
    optimiser = server_optimiser(router.network, params.router.learning_rate)
    asked = [client for client in clients if client.name not in router.excluded]
    for _ in track(range(params.router.rounds), description="router, federated"):
        state, updates = router.state_bytes(), []
        for client in asked:
            with suppress(ClientError):
                updates.append(client.router_update(state, params.router.local_steps, params.router.local_learning_rate))
        if not updates:
            raise ClientError("no client answered; the router cannot be fitted")
        apply_updates(router.network, updates, optimiser)
    return router


def fit_preferences(router: Router, clients: list[RemoteClient], params: Params, base: Vlm, public: torch.Tensor) -> Router:
    """Bradley-Terry on anchor pairs that every client shares and every client scores."""
    asked = [client for client in clients if client.name not in router.excluded]
    shared = [client.anchors(params.router.anchors) for client in asked]
    prompts = [prompt for anchors in shared for prompt in anchors[0]]
    images = [image for anchors in shared for image in anchors[1]]
    chosen = [answer for anchors in shared for answer in anchors[2]]
    rejected = [answer for anchors in shared for answer in anchors[3]]
    margins = torch.full((len(prompts), len(clients)), float("nan"))
    for client in asked:
        pairs = zip(client.score(prompts, images, chosen), client.score(prompts, images, rejected), strict=True)
        differences = [float("nan") if a is None or b is None else a - b for a, b in pairs]
        margins[:, clients.index(client)] = torch.tensor(differences)
    fitted, _ = fit_bradley_terry(router, base.prompt_states(prompts, images), margins, public=public, trust=0.0)
    return fitted


def control_clients(
    router: Router, clients: list[RemoteClient], params: Params, base: Vlm, features: torch.Tensor
) -> tuple[dict[str, float], list[str]]:
    """Ask the control questions; returns each client's share of fitting answers, and who failed.

    Where every client fails, the base must be no judge, and nobody did.
    """
    rows, images = public_prompts()
    budget, rng = min(params.router.control, len(rows)), stream(params.seed, "control", str(len(router.excluded)))
    asked = [client for client in clients if client.name not in router.excluded]
    pool = rng.choice(len(rows), size=min(len(rows), 2 * budget * len(clients)), replace=False).tolist()
    prompts, pictures = [rows[i].prompt for i in pool], [images[i] for i in pool]
    answers = base.answer(prompts, pictures, params.grpo.max_completion_tokens)
    weights = router.weights(features[pool]).double().numpy()
    columns = [clients.index(client) for client in asked]
    shares = control_shares(asked, weights[:, columns], prompts, pictures, answers, budget, rng)
    failed = [name for name, share in shares.items() if not_above_chance(share, budget)]
    return shares, [] if len(failed) == len(shares) else failed


def unfitted(params: Params, features: torch.Tensor) -> Router:
    """A router that weighs all clients alike, ready to be fitted; ``features`` (N, F) of the public prompts."""
    generator = torch.Generator().manual_seed(integer(params.seed, "router"))
    network: torch.nn.Module = new_network(features, params.router.hidden, len(params.clients), generator)
    if params.router.kind == "static":
        network = StaticNetwork(len(params.clients))
    return Router(params.router.kind, list(params.clients), network, temperature=params.router.temperature)


def fit_and_control(
    params: Params, clients: list[RemoteClient], base: Vlm, features: torch.Tensor
) -> tuple[Router, dict[str, float]]:
    """Fit a router and check what it trusts: who fails the control questions is excluded, and the router fitted anew.

    Returns the router and each client's share of control questions, from the last time that it was asked.
    """
    excluded: list[str] = []
    shares: dict[str, float] = {}
    while True:
        router = unfitted(params, features)
        router.excluded = excluded
        if params.router.kind == "federated":
            router = fit_federated(router, clients, params)
        else:
            router = fit_preferences(router, clients, params, base, features)
        if not params.router.control or router.kind == "static":
            return router, shares
        asked, failed = control_clients(router, clients, params, base, features)
        shares |= asked
        if not failed:
            return router, shares
        for name in failed:
            Console(stderr=True).print(
                f"[yellow]client {name} is left out:[/] it prefers the fitting answer to {shares[name]:.0%} of "
                f"{params.router.control} control questions, no more than chance"
            )
        excluded = [*excluded, *failed]


def owners(params: Params) -> dict[str, list[str]]:
    """Which clients have pairs of each category: what only an oracle could know."""
    table: dict[str, list[str]] = {}
    for client in params.clients:
        for category in {row.category for row in read_rows(paths.validated_client(client), Preference)} - {None}:
            table.setdefault(str(category), []).append(client)
    return table


def public_prompts() -> tuple[list[Prompt], list[Image.Image]]:
    """The server's validated prompts and their images."""
    rows = read_rows(paths.VALIDATED_PUBLIC, Prompt)
    return rows, load_images(paths.PUBLIC, rows)


@task
def fit_router() -> None:
    """Fit ``params.router.kind`` and save it with the public prompts' features."""
    params = load_params(paths.PARAMS)
    kind, names = params.router.kind, list(params.clients)
    with stage_run("router", {"seed": params.seed, "router": params.router}) as run:
        base, ledger = Vlm.load(params.base, params.evaluation.batch_size), Ledger()
        rows, images = public_prompts()
        features = base.prompt_states([row.prompt for row in rows], images)
        router = unfitted(params, features)
        if kind in ("uniform", "random", "oracle"):
            router = Router(kind, names, owners=owners(params) if kind == "oracle" else {})
        elif kind != "online":  # online learns in `align`, from fresh answers alone
            clients = connect_clients(params, ledger, base)
            if kind == "federated":
                for client in clients:  # clients read prompts with the public base model, which they download once
                    ledger.record(client.name, "encoder", down=_weights_size(params.base))
            router, shares = fit_and_control(params, clients, base, features)
            run.metrics({f"router.control.{name}": share for name, share in shares.items()})
        fresh = paths.checkpoint_folder("router") / "result"
        router.save(fresh)
        ledger.save(fresh / "ledger.json")
        save_file({"features": features}, fresh / "features.safetensors")
        move_in(fresh, paths.ROUTER)
        weights = router.weights(features, [row.category for row in rows])
        run.metrics({f"router.mean_weight.{name}": float(w) for name, w in zip(names, weights.mean(0), strict=True)})
        run.artifact(paths.ROUTER)


def _weights_size(source: str) -> int:
    return sum(path.stat().st_size for path in Path(source).glob("*.safetensors"))
