"""The first router of a server: fitted to what clients say, then checked by control questions.

A new kind of router is a function ``(router, server, base, fit, last) -> Router`` in ``FITS``, and its name in
``mor.routing.router.KINDS``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from mor.errors import UserError
from mor.federation.quorum import ask, require_quorum
from mor.federation.remote import Anchors, RemoteClient
from mor.federation.server import Server
from mor.routing.bradley_terry import fit_bradley_terry, new_network
from mor.routing.control import Share, control_clients
from mor.routing.means import CHANCE, MeansNetwork, basis, nearest_mean
from mor.routing.router import Router, StaticNetwork
from mor.seeds import integer
from mor.vlm.load import Vlm

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


def first_router(server: Server, base: Vlm) -> tuple[Router, Fit]:
    """The router before any round. An ``online`` one weighs all alike: it learns from fresh answers alone.

    Raises ``QuorumError`` where too few clients answer.
    """
    settings, kind = server.settings, server.settings.router.kind
    if kind in ("uniform", "random", "oracle"):
        seed = integer(settings.seed, "random router") if kind == "random" else 0
        return Router(kind, server.names, owners=server.owners if kind == "oracle" else {}, seed=seed), Fit()
    return (unfitted(server), Fit()) if kind == "online" else fit_and_control(server, base)


def fit_and_control(server: Server, base: Vlm, last: Router | None = None) -> tuple[Router, Fit]:
    """Fit a router and check what it trusts: who fails the control questions is excluded, and the router fitted anew.

    Returns the router and what the clients said, from the last time that each was asked. Raises ``QuorumError`` where too few
    answer.
    """
    excluded: list[str] = []
    fit, settings = Fit(), server.settings.router
    while True:
        router = unfitted(server)
        router.excluded = excluded
        router = FITS[settings.kind](router, server, base, fit, last)
        if not settings.control or router.kind == "static":
            return router, fit
        asked, failed, silent = control_clients(router, server, base)
        fit.shares |= asked
        if not failed:
            for name, reason in silent.items():
                warn(name, f"{reason}. Who does not answer the control questions is not trusted")
            router.excluded = [*router.excluded, *silent]  # and not absent: a greeting would have it fitted again every round
            return router, fit
        for name in failed:
            share = fit.shares[name]
            told = f"{share.value:.0%} of {share.questions} control questions"
            warn(name, f"it prefers the fitting answer to {told}, no more than chance")
        excluded = [*router.excluded, *failed]


def unfitted(server: Server) -> Router:
    """A router that weighs all clients alike, ready to be fitted."""
    settings = server.settings
    generator = torch.Generator().manual_seed(integer(settings.seed, "router"))
    network: torch.nn.Module = new_network(server.features, settings.router.hidden, len(server.clients), generator)
    if settings.router.kind == "static":
        network = StaticNetwork(len(server.clients))
    return Router(settings.router.kind, server.names, network, temperature=settings.router.temperature)


def fit_means(router: Router, server: Server, base: Vlm, fit: Fit, last: Router | None) -> Router:
    """The nearest of the clients' means, which each is asked for once; who ranks its own pairs by chance is left out.

    The basis is that of the ``last`` router if there is one: other bits, as of other threads, would be another basis.
    """
    clients = server.clients
    if last is not None and isinstance(last.network, MeansNetwork):
        mean, projection = last.network.mean, last.network.projection
    else:
        mean, projection = basis(server.features, server.settings.router.components)
    asked = [client for client in clients if client.name not in router.excluded]
    answers, failures = ask(asked, lambda client: client.means(mean.numpy(), projection.numpy()))
    router.absent = _absentees(router, server, failures, fit)
    fit.accuracy |= {name: accuracy for name, (_, accuracy) in answers.items()}
    router.excluded = [*router.excluded, *_guessing(fit.accuracy, list(answers), whole=not failures)]
    means = torch.zeros(len(clients), projection.shape[1])
    for k, client in enumerate(clients):
        if client.name in answers:
            means[k] = torch.from_numpy(answers[client.name][0])
    present = torch.tensor([not lost for lost in router.lost])
    return router.with_network(nearest_mean(means, present, mean, projection, server.features))


def _guessing(accuracy: dict[str, float], answered: list[str], *, whole: bool) -> list[str]:
    """Who ranks its own pairs no better than chance; nobody where all do, and all (``whole``) have answered."""
    guessing = [name for name in answered if accuracy[name] <= CHANCE]
    if len(guessing) == len(answered) and whole:
        console.print("[yellow]no client ranks its own pairs better than chance:[/] all are weighed by their prompts alone")
        return []
    for name in guessing:
        warn(name, f"it ranks {accuracy[name]:.0%} of its own pairs rightly, which is no better than chance")
    return guessing


def fit_preferences(router: Router, server: Server, base: Vlm, fit: Fit, last: Router | None) -> Router:
    """Bradley-Terry on the pairs that clients share, each scored by its owner alone: the others count as indifferent.

    Raises ``UserError`` where nobody shares any.
    """
    clients, settings = server.clients, server.settings.router
    asked = [client for client in clients if client.name not in router.excluded]
    shared, failures = ask(asked, lambda client: client.anchors(settings.anchors))
    rows: list[torch.Tensor] = []
    features = []
    for client in asked:
        if client.name not in shared or not (anchors := shared[client.name]).prompts:
            continue
        margins, away = ask([client], lambda client, anchors=anchors: _margins(client, anchors))  # type: ignore[misc]
        failures |= away
        if margins:
            own = torch.zeros(len(anchors.prompts), len(clients))
            own[:, clients.index(client)] = margins[client.name]
            rows.append(own)
            features.append(base.prompt_states(anchors.prompts, anchors.images))
    router.absent = _absentees(router, server, failures, fit)
    if not rows:
        raise UserError(
            f"router.kind {router.kind} is fitted to pairs that clients share, and no client shares any: list their ids under "
            "clients.<name>.shared_anchors in that client's params.yaml, or set router.kind: means"
        )
    silent = [name for name, anchors in shared.items() if not anchors.prompts]
    for name in silent:
        warn(name, "it shares no anchors (clients.<name>.shared_anchors)")
    router.excluded = [*router.excluded, *silent]
    fitted, _ = fit_bradley_terry(router, torch.cat(features), torch.cat(rows), public=server.features, trust=0.0)
    return fitted


FITS: dict[str, Callable[[Router, Server, Vlm, Fit, Router | None], Router]] = {
    "means": fit_means,
    "preferences": fit_preferences,
    "static": fit_preferences,
}


def warn(client: str, text: str) -> None:
    """Tell the operator of a client that is left out."""
    console.print(f"[yellow]client {client} is left out:[/] {escape(text)}", highlight=False)


def _absentees(router: Router, server: Server, failures: dict[str, str], fit: Fit) -> list[str]:
    """Who did not answer; says so, and raises ``QuorumError`` where too many did not."""
    asked = [client for client in server.clients if client.name not in router.excluded]
    fit.answered |= {client.name: client.name not in failures for client in asked}
    require_quorum(asked, failures, server.settings.grpo.quorum)
    for name, reason in failures.items():
        warn(name, f"{reason}. It has no weight until it answers; the router is fitted anew then")
    return list(failures)


def _margins(client: RemoteClient, anchors: Anchors) -> torch.Tensor:
    """The owner's scores of its chosen answers minus those of its rejected ones, shape (N,); NaN where it has none."""
    n = len(anchors.prompts)
    scores = client.score(anchors.prompts * 2, anchors.images * 2, [*anchors.chosen, *anchors.rejected])
    values = torch.tensor([float("nan") if score is None else score for score in scores])
    return values[:n] - values[n:]


# --- which reward models a router knows ------------------------------------------------------------------------------


def save_router(router: Router, fingerprints: dict[str, str], folder: Path) -> None:
    """Write a router with the reward models that it knows."""
    router.save(folder)
    (folder / FINGERPRINTS).write_text(json.dumps(fingerprints))


def fingerprints(clients: Sequence[RemoteClient], last: Path, absent: list[str]) -> tuple[dict[str, str], list[str]]:
    """Each client's reward model by now, and whose is another one than that known to the router in ``last``, or new since.

    Nobody's is where ``last`` names none. Who was ``absent`` then is greeted, and new once it answers.
    """
    path = last / FINGERPRINTS
    before: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    back, _ = ask([client for client in clients if client.name in absent], RemoteClient.hello)
    now = before | {client.name: client.fingerprint for client in clients if client.fingerprint}
    return now, [name for name in now if name in back or (before and now[name] != before.get(name))]
