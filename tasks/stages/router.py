"""Fit the first router, before any GRPO round."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from safetensors.torch import save_file

from mor.config import Params, UserError, load_params
from mor.data.schema import Preference, Prompt, load_images, read_rows
from mor.federation.ledger import Ledger
from mor.federation.quorum import QuorumError, ask, require_quorum
from mor.federation.remote import Anchors, RemoteClient
from mor.routing.bradley_terry import fit_bradley_terry, new_network
from mor.routing.control import Share, control_shares
from mor.routing.means import CHANCE, MeansNetwork, basis, nearest_mean
from mor.routing.router import Router, StaticNetwork
from mor.seeds import integer, stream
from mor.vlm.load import Vlm
from tasks.project import paths
from tasks.project.clients import connect_clients
from tasks.project.decorators import task
from tasks.project.files import move_in
from tasks.tracking.runs import stage_run

console = Console(stderr=True, soft_wrap=True)
FINGERPRINTS = "fingerprints.json"  # beside a router: the reward models that it knows, by client


@dataclass
class Fit:
    """What the clients said while the router was fitted: who answered, how often each ranks its own pairs rightly (means),
    and its share of control questions."""

    answered: dict[str, bool] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        return (
            {f"router.answered.{name}": float(here) for name, here in self.answered.items()}
            | {f"router.claimed_accuracy.{name}": value for name, value in self.accuracy.items()}
            | {f"router.control.{name}": share.value for name, share in self.shares.items()}
        )


def warn(client: str, text: str) -> None:
    """Tell the operator of a client that is left out."""
    console.print(f"[yellow]client {client} is left out:[/] {escape(text)}", highlight=False)


def absentees(router: Router, clients: list[RemoteClient], failures: dict[str, str], params: Params, fit: Fit) -> list[str]:
    """Who did not answer; says so, and raises ``QuorumError`` where too many did not."""
    asked = [client for client in clients if client.name not in router.excluded]
    fit.answered |= {client.name: client.name not in failures for client in asked}
    require_quorum(asked, failures, params.grpo.quorum)
    for name, reason in failures.items():
        warn(name, f"{reason}. It has no weight until it answers; the router is fitted anew then")
    return list(failures)


def fit_means(
    router: Router, clients: list[RemoteClient], params: Params, public: torch.Tensor, fit: Fit, last: Router | None
) -> Router:
    """The nearest of the clients' means, which each is asked for once; who ranks its own pairs by chance is left out.

    The basis is that of the ``last`` router if there is one: other bits, as of other threads, would be another basis.
    """
    if last is not None and isinstance(last.network, MeansNetwork):
        mean, projection = last.network.mean, last.network.projection
    else:
        mean, projection = basis(public, params.router.components)
    asked = [client for client in clients if client.name not in router.excluded]
    answers, failures = ask(asked, lambda client: client.means(mean.numpy(), projection.numpy()))
    router.absent = absentees(router, clients, failures, params, fit)
    fit.accuracy |= {name: accuracy for name, (_, accuracy) in answers.items()}
    guessing = [name for name, (_, accuracy) in answers.items() if accuracy <= CHANCE]
    if len(guessing) == len(answers) and not failures:
        console.print("[yellow]no client ranks its own pairs better than chance:[/] all are weighed by their prompts alone")
        guessing = []
    for name in guessing:
        warn(name, f"it ranks {fit.accuracy[name]:.0%} of its own pairs rightly, which is no better than chance")
    router.excluded = [*router.excluded, *guessing]
    means = torch.zeros(len(clients), projection.shape[1])
    for k, client in enumerate(clients):
        if client.name in answers:
            means[k] = torch.from_numpy(answers[client.name][0])
    present = torch.tensor([not lost for lost in router.lost])
    return router.with_network(nearest_mean(means, present, mean, projection, public))


def fit_preferences(
    router: Router, clients: list[RemoteClient], params: Params, base: Vlm, public: torch.Tensor, fit: Fit
) -> Router:
    """Bradley-Terry on the pairs that clients share, each scored by its owner alone: the others count as indifferent.

    Raises ``UserError`` where nobody shares any.
    """
    asked = [client for client in clients if client.name not in router.excluded]
    shared, failures = ask(asked, lambda client: client.anchors(params.router.anchors))
    rows: list[torch.Tensor] = []
    features = []
    for client in asked:
        if client.name not in shared or not (anchors := shared[client.name]).prompts:
            continue
        told, away = ask([client], lambda client, anchors=anchors: _margins(client, anchors))  # type: ignore[misc]
        failures |= away
        if told:
            own = torch.zeros(len(anchors.prompts), len(clients))
            own[:, clients.index(client)] = told[client.name]
            rows.append(own)
            features.append(base.prompt_states(anchors.prompts, anchors.images))
    router.absent = absentees(router, clients, failures, params, fit)
    if not rows:
        raise UserError(
            f"router.kind {router.kind} is fitted to pairs that clients share, and no client shares any: list their ids under "
            "clients.<name>.shared_anchors in that client's params.yaml, or set router.kind: means"
        )
    silent = [name for name, anchors in shared.items() if not anchors.prompts]
    for name in silent:
        warn(name, "it shares no anchors (clients.<name>.shared_anchors)")
    router.excluded = [*router.excluded, *silent]
    fitted, _ = fit_bradley_terry(router, torch.cat(features), torch.cat(rows), public=public, trust=0.0)
    return fitted


def _margins(client: RemoteClient, anchors: Anchors) -> torch.Tensor:
    """The owner's scores of its chosen answers minus those of its rejected ones, shape (N,); NaN where it has none."""
    n = len(anchors.prompts)
    scores = client.score(anchors.prompts * 2, anchors.images * 2, [*anchors.chosen, *anchors.rejected])
    values = torch.tensor([float("nan") if score is None else score for score in scores])
    return values[:n] - values[n:]


def control_clients(
    router: Router, clients: list[RemoteClient], params: Params, base: Vlm, features: torch.Tensor
) -> tuple[dict[str, Share], list[str], dict[str, str]]:
    """Ask the control questions; returns each client's share of fitting answers, who failed, and why others were silent.

    Where every client fails, the base must be no judge, and nobody did. That is not known where some were silent or are out
    already: then it raises ``QuorumError`` or ``UserError``. Raises ``QuorumError`` below the quorum too.
    """
    rows, images = public_prompts()
    budget, rng = min(params.router.control, len(rows)), stream(params.seed, "control", str(len(router.excluded)))
    asked = [client for client, lost in zip(clients, router.lost, strict=True) if not lost]
    pool = rng.choice(len(rows), size=min(len(rows), 2 * budget * len(clients)), replace=False).tolist()
    prompts, pictures = [rows[i].prompt for i in pool], [images[i] for i in pool]
    answers = base.answer(prompts, pictures, params.grpo.max_completion_tokens)
    weights = router.weights(features[pool]).double().numpy()
    columns = [clients.index(client) for client in asked]
    shares, silent = control_shares(asked, weights[:, columns], prompts, pictures, answers, budget, rng)
    require_quorum(asked, silent, params.grpo.quorum)
    judged = {name: share for name, share in shares.items() if share.questions}
    failed = [name for name, share in judged.items() if share.not_above_chance]
    if len(failed) < len(judged):
        return shares, failed, silent
    if failed and (silent or router.excluded):
        told = f"nobody who answers the control questions passes them ({', '.join(failed)})"
        if silent:
            raise QuorumError(f"{told}, and {', '.join(silent)} did not answer; bring them back and run `dvc repro` again")
        raise UserError(
            f"{told}, and {', '.join(router.excluded)} had no part: no reward model here can be trusted; train them longer"
        )
    return shares, [], silent


def unfitted(params: Params, features: torch.Tensor) -> Router:
    """A router that weighs all clients alike, ready to be fitted; ``features`` (N, F) of the public prompts."""
    generator = torch.Generator().manual_seed(integer(params.seed, "router"))
    network: torch.nn.Module = new_network(features, params.router.hidden, len(params.clients), generator)
    if params.router.kind == "static":
        network = StaticNetwork(len(params.clients))
    return Router(params.router.kind, list(params.clients), network, temperature=params.router.temperature)


def fit_and_control(
    params: Params, clients: list[RemoteClient], base: Vlm, features: torch.Tensor, last: Router | None = None
) -> tuple[Router, Fit]:
    """Fit a router and check what it trusts: who fails the control questions is excluded, and the router fitted anew.

    Returns the router and what the clients said, from the last time that each was asked. Raises ``QuorumError`` where too few
    answer.
    """
    excluded: list[str] = []
    fit = Fit()
    while True:
        router = unfitted(params, features)
        router.excluded = excluded
        if params.router.kind == "means":
            router = fit_means(router, clients, params, features, fit, last)
        else:
            router = fit_preferences(router, clients, params, base, features, fit)
        if not params.router.control or router.kind == "static":
            return router, fit
        asked, failed, silent = control_clients(router, clients, params, base, features)
        fit.shares |= asked
        if not failed:
            for name, reason in silent.items():
                warn(name, f"{reason}. Who does not answer the control questions is not trusted")
            router.excluded = [*router.excluded, *silent]  # and not absent: a greeting would have it fitted again every round
            return router, fit
        for name in failed:
            told = f"{fit.shares[name].value:.0%} of {fit.shares[name].questions} control questions"
            warn(name, f"it prefers the fitting answer to {told}, no more than chance")
        excluded = [*router.excluded, *failed]


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
    with stage_run("router", {"seed": params.seed, "router": params.router, "boundary": params.boundary}) as run:
        base, ledger = Vlm.load(params.base, params.evaluation.batch_size), Ledger()
        rows, images = public_prompts()
        features = base.prompt_states([row.prompt for row in rows], images)
        router, clients = unfitted(params, features), []
        if kind in ("uniform", "random", "oracle"):
            seed = integer(params.seed, "random router") if kind == "random" else 0
            router = Router(kind, names, owners=owners(params) if kind == "oracle" else {}, seed=seed)
        elif kind != "online":  # online learns in `align`, from fresh answers alone
            clients = connect_clients(params, ledger, base)
            if kind == "means":
                for client in clients:  # clients read prompts with the public base model, which they download once
                    ledger.record(client.name, "encoder", down=_weights_size(params.base))
            router, fit = fit_and_control(params, clients, base, features)
            run.metrics(fit.metrics)
        fresh = paths.checkpoint_folder("router") / "result"
        router.save(fresh)
        (fresh / FINGERPRINTS).write_text(json.dumps(ask(clients, RemoteClient.hello)[0]))
        ledger.save(fresh / "ledger.json")
        save_file({"features": features}, fresh / "features.safetensors")
        move_in(fresh, paths.ROUTER)
        weights = router.weights(features, [row.category for row in rows])
        run.metrics({f"router.mean_weight.{name}": float(w) for name, w in zip(names, weights.mean(0), strict=True)})
        run.artifact(paths.ROUTER)


def _weights_size(source: str) -> int:
    return sum(path.stat().st_size for path in Path(source).glob("*.safetensors"))
