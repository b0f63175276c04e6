"""Fit the first router, before any GRPO round."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from rich.progress import track
from safetensors.torch import save_file

from mor.config import Params, load_params
from mor.data.schema import Preference, Prompt, load_images, read_rows
from mor.federation.client import RemoteClient
from mor.federation.ledger import Ledger
from mor.routing.fit import apply_updates, fit_bradley_terry, flat, new_network
from mor.routing.router import Router, StaticNetwork
from mor.seeds import integer
from mor.vlm.load import Vlm
from tasks import paths
from tasks.checkpoints import move_in
from tasks.clients import connect_clients
from tasks.runtime import task
from tasks.tracking import stage_run


def fit_federated(router: Router, clients: list[RemoteClient], params: Params) -> Router:
    """Rounds of client updates, averaged by the server."""
    assert router.network is not None
    momentum = torch.zeros_like(flat(router.network))
    for _ in track(range(params.router.rounds), description="router, federated"):
        state = router.state_bytes()
        updates = [c.router_update(state, params.router.local_steps, params.router.learning_rate) for c in clients]
        momentum = apply_updates(router.network, updates, momentum)
    return router


def fit_preferences(router: Router, clients: list[RemoteClient], params: Params, base: Vlm, public: torch.Tensor) -> Router:
    """Bradley-Terry on anchor pairs that every client shares and every client scores."""
    shared = [client.anchors(params.router.anchors) for client in clients]
    prompts = [prompt for anchors in shared for prompt in anchors[0]]
    images = [image for anchors in shared for image in anchors[1]]
    chosen = [answer for anchors in shared for answer in anchors[2]]
    rejected = [answer for anchors in shared for answer in anchors[3]]
    margins = torch.tensor(
        [
            [float("nan") if a is None or b is None else a - b for a, b in zip(better, worse, strict=True)]
            for better, worse in (
                (client.score(prompts, images, chosen), client.score(prompts, images, rejected)) for client in clients
            )
        ]
    ).T
    fitted, _ = fit_bradley_terry(router, base.prompt_states(prompts, images), margins, public=public, trust=0.0)
    return fitted


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
        generator = torch.Generator().manual_seed(integer(params.seed, "router"))
        network = new_network(features, params.router.hidden, len(names), generator)
        router = Router(kind, names, network, temperature=params.router.temperature)
        if kind == "static":
            router.network = StaticNetwork(len(names))
        if kind in ("uniform", "oracle"):
            router = Router(kind, names, owners=owners(params) if kind == "oracle" else {})
        elif kind != "online":  # online starts uniform and learns from fresh answers alone
            clients = connect_clients(params, ledger, base)
            if kind == "federated":
                for client in clients:  # clients read prompts with the public base model, which they download once
                    ledger.record(client.name, "encoder", down=_weights_size(params.base))
                router = fit_federated(router, clients, params)
            else:
                router = fit_preferences(router, clients, params, base, features)
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
