"""The router after a round: refitted online to what clients say of the policy's fresh answers.

Where a client answers with another reward model than in the round before, for the first time, or again, it is fitted anew
instead: a trust region would hold on to what was true of the old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from mor.alignment.mixed_reward import ask_clients
from mor.federation.quorum import ask, require_quorum
from mor.federation.server import Server
from mor.routing.bradley_terry import fit_bradley_terry
from mor.routing.fit import fit_and_control, unfitted
from mor.routing.router import LEARNED, Router
from mor.seeds import stream
from mor.vlm.load import Vlm
from mor.vlm.lora import load_policy

console = Console(stderr=True)


@dataclass(frozen=True)
class Refit:
    """What an online refit rests on: comparisons used and the log-loss of the mixed reward on them, in nats."""

    comparisons: int = 0
    loss: float = float("nan")


def next_router(number: int, server: Server, router: Router, changed: list[str], adapter: Path | None) -> tuple[Router, Refit]:
    """The router after round ``number``: refitted on fresh answers of the policy, or fitted anew for who has ``changed``.

    Before the first round, as round 0 without an ``adapter``, the policy is the base. A router that knows nothing yet has
    nothing to be held to, so no trust region holds it.
    """
    settings = server.settings
    if not settings.router.refit_pairs or router.kind not in LEARNED:
        return router, Refit()
    if changed:
        who = ", ".join(changed)
        console.print(f"[yellow]answering with another reward model, or again: {who}.[/] The router is fitted anew")
        if router.kind != "online":
            return fit_and_control(server, server.load_base(), router)[0], Refit()
        router = unfitted(server)
    trust = settings.router.trust if number and not changed else 0.0
    policy = load_policy(server.base, adapter, settings.batch_size) if adapter else server.load_base()
    return refit_router(router, policy, server, trust=trust, rng=stream(settings.seed, "refit", number))


def refit_router(
    router: Router, policy: Vlm, server: Server, *, trust: float, rng: np.random.Generator
) -> tuple[Router, Refit]:
    """Refit on the clients' "A or B?" answers to fresh answers of ``policy``, held by ``trust`` to the last router.

    Draws ``router.refit_pairs`` prompts, samples two answers to each, drops pairs that are equal, asks every client's annotator
    for a choice and every reward model for its scores. Torch's global generator is seeded from ``rng`` for the sampling. Raises
    ``QuorumError`` where too few clients answer.
    """
    prompts, settings, clients = server.prompts, server.settings, server.clients
    chosen = rng.choice(len(prompts), size=min(settings.router.refit_pairs, len(prompts)), replace=False)
    asked = [prompts[i] for i in chosen]
    torch.manual_seed(int(rng.integers(2**31)))
    texts, images = [p.text for p in asked], [p.image for p in asked]
    limit, heat = settings.grpo.max_completion_tokens, settings.grpo.temperature
    drafts = [policy.answer(texts, images, limit, temperature=heat) for _ in "AB"]
    differ = [i for i in range(len(asked)) if drafts[0][i] != drafts[1][i]]
    if not differ:
        return router, Refit()
    asked, rows = [asked[i] for i in differ], chosen[differ]
    first, second = ([draft[i] for i in differ] for draft in drafts)
    everyone = np.tile(~np.array(router.lost), (len(asked), 1))
    (liked, away), (other, gone) = (ask_clients(clients, asked, draft, everyone) for draft in (first, second))
    margins = liked - other
    trusted = [client for client, lost in zip(clients, router.lost, strict=True) if not lost]
    votes, silent = ask(trusted, lambda client: client.compare([p.id for p in asked], first, second))
    require_quorum(trusted, away | gone | silent, settings.grpo.quorum)
    choices = [(i, 1.0 if vote else -1.0) for given in votes.values() for i, vote in enumerate(given) if vote is not None]
    if not choices:
        return router, Refit()
    index = [i for i, _ in choices]
    signs = np.array([sign for _, sign in choices])
    fitted, loss = fit_bradley_terry(
        router,
        server.features[torch.from_numpy(rows[index])],
        torch.from_numpy(margins[index] * signs[:, None]).float(),
        public=server.features,
        trust=trust,
    )
    return fitted, Refit(len(choices), loss)
