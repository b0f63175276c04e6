"""Fit the first router, before any GRPO round."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from mor.config import Params
from mor.federation.ledger import Ledger
from mor.federation.quorum import ask
from mor.federation.remote import RemoteClient
from mor.files import fresh_folder
from mor.routing.fit import first_router, save_router
from mor.vlm.load import Vlm
from tasks.project import paths
from tasks.project.clients import server_of
from tasks.project.decorators import task
from tasks.tracking.runs import stage_run

ASK_NOBODY = ("uniform", "random", "oracle", "online")  # online learns in `align`, from fresh answers alone


@task
def fit_router(params: Params) -> None:
    """Fit ``params.router.kind`` and save it with the public prompts' features."""
    with stage_run("router", {"seed": params.seed, "router": params.router, "boundary": params.boundary}) as run:
        base, ledger = Vlm.load(params.base, params.evaluation.batch_size), Ledger()
        server = server_of(params, base, ledger, clients=[] if params.router.kind in ASK_NOBODY else None)
        if params.router.kind == "means":
            for client in server.clients:  # clients read prompts with the public base model, which they download once
                ledger.record(client.name, "encoder", down=_weights_size(params.base))
        router, fit = first_router(server, base)
        run.metrics(fit.metrics)
        with fresh_folder(paths.ROUTER) as fresh:
            save_router(router, ask(server.clients, RemoteClient.hello)[0], fresh)
            ledger.save(fresh / "ledger.json")
            save_file({"features": server.features}, fresh / "features.safetensors")
        weights = router.weights(server.features, [prompt.category for prompt in server.prompts])
        names = list(params.clients)
        run.metrics({f"router.mean_weight.{name}": float(w) for name, w in zip(names, weights.mean(0), strict=True)})
        run.artifact(paths.ROUTER)


def _weights_size(source: str) -> int:
    return sum(path.stat().st_size for path in Path(source).glob("*.safetensors"))
