"""What the router does when a client changes half way: its reward model breaks, or it joins late.

The policy is never trained again from the start: the rounds go on with what there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.catalogue import ClientChange
from mor.config import Params
from mor.federation import messages
from mor.federation.ledger import Ledger
from mor.federation.remote import RemoteClient, Transport
from mor.rewards.model import CalibratedReward, ImplicitReward, RewardModel
from mor.routing.router import Router
from mor.seeds import integer
from mor.vlm.load import Vlm
from tasks.project.checkpoints import resumable
from tasks.project.clients import client_service
from tasks.stages.align import one_round, weigh
from tasks.stages.router import fit_and_control, owners, public_prompts

Weight = tuple[int, str, str, float]  # round, client, whose questions, mean weight in that round


def broken(model: RewardModel, seed: int) -> RewardModel:
    """The reward model with its tuned weights drawn afresh: it still answers, and knows nothing."""
    assert isinstance(model, CalibratedReward)
    assert isinstance(model.scorer, ImplicitReward), "only an implicit reward model can be broken"
    torch.manual_seed(seed)
    tuned = model.scorer.tuned
    fresh = AutoModelForImageTextToText.from_config(tuned.model.config).to(tuned.model.device).eval()
    scorer = ImplicitReward(replace(tuned, model=fresh), model.scorer.reference, model.scorer.floor)
    return CalibratedReward(scorer, model.calibration, "0" * 16)


def adapt(params: Params, change: ClientChange, again: bool, ledger: Ledger) -> tuple[Path, list[Weight]]:
    """Align in rounds, ``change`` happening before its round; returns the adapter's folder and the weights of every round.

    With ``again`` the clients fit the router afresh before every round; the online refit follows ``params``.
    """
    folder = resumable("adapt", params.model_dump(include={"seed", "base", "clients", "router", "grpo"}), [])
    base = Vlm.load(params.base, params.evaluation.batch_size)
    rows, images = public_prompts()
    features = base.prompt_states([row.prompt for row in rows], images)
    theirs = {category: who[0] for category, who in owners(params).items()}
    now = 0

    def transport(name: str) -> Transport:
        service = client_service(params, name, base)
        if name != change.client:
            return service.handle
        absent = messages.encode(messages.Failure("internal"))  # has not joined yet
        failing = replace(service, reward_model=broken(service.reward_model, integer(params.seed, "broken")))
        before: Callable[[bytes], bytes] = (lambda _: absent) if change.joins else service.handle
        after = service.handle if change.joins else failing.handle
        return lambda data: (after if now >= change.round else before)(data)

    clients = [RemoteClient(name, transport(name), ledger) for name in params.clients]
    weights: list[Weight] = []
    router, _ = fit_and_control(params, clients, base, features)
    for now in range(1, params.grpo.rounds + 1):
        done = folder / "rounds" / str(now)
        if again and now > 1:
            router, _ = fit_and_control(params, clients, base, features)
        prompts = weigh(rows, images, router, features)
        for owner in params.clients:
            asked = [p.weights for p in prompts.values() if theirs.get(p.category or "") == owner]
            mean = np.mean(asked, axis=0).tolist()
            weights += [(now, client, owner, w) for client, w in zip(params.clients, mean, strict=True)]
        if done.exists():
            ledger.restore(done / "ledger.json")
        else:
            one_round(now, params, prompts, router, features, clients, ledger, folder)
        router = Router.load(done)
    return folder / "rounds" / str(params.grpo.rounds) / "adapter", weights
