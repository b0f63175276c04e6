"""What the router does when a client changes half way: its reward model breaks, or it joins late.

The policy is never trained again from the start: the rounds go on with what there is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.catalogue import ClientChange
from mor.alignment.rounds import run_rounds, weigh
from mor.config import Params
from mor.federation import messages
from mor.federation.ledger import Ledger
from mor.federation.remote import RemoteClient, Transport
from mor.federation.service import ClientService
from mor.rewards.model import CalibratedReward, ImplicitReward, RewardModel
from mor.seeds import integer
from mor.vlm.load import Vlm
from tasks.project.checkpoints import resumable
from tasks.project.clients import client_service, owners, server_of


def break_reward_model(model: RewardModel, seed: int) -> RewardModel:
    """The reward model with its tuned weights drawn afresh: it still answers, and knows nothing."""
    assert isinstance(model, CalibratedReward)
    assert isinstance(model.scorer, ImplicitReward), "only an implicit reward model can be broken"
    torch.manual_seed(seed)
    tuned = model.scorer.tuned
    fresh = AutoModelForImageTextToText.from_config(tuned.model.config).to(tuned.model.device).eval()
    scorer = ImplicitReward(replace(tuned, model=fresh), model.scorer.reference, model.scorer.floor)
    return CalibratedReward(scorer, model.calibration, "0" * 16)


def adapt(params: Params, change: ClientChange, again: bool, ledger: Ledger) -> tuple[Path, list[tuple[str, str, float]]]:
    """Align in rounds, ``change`` happening before its round; returns the adapter's folder and what was seen in each round.

    That is the mean weight of every client on every client's prompts: ``("weight:<client>", "<whose prompts>@<round>", mean)``.
    With ``again`` the clients fit the router afresh before every round; the online refit follows ``params``.
    """
    folder = resumable("adapt", params.model_dump(include={"seed", "base", "clients", "router", "grpo"}), [])
    base = Vlm.load(params.base, params.evaluation.batch_size)
    now = 1

    def transport(name: str) -> Transport:
        service = client_service(params, name, base)
        if name != change.client:
            return service.handle
        before, after = halves(service, change.joins, integer(params.seed, "broken"))
        return lambda data: (after if now >= change.round else before)(data)

    clients = [RemoteClient(name, transport(name), ledger) for name in params.clients]
    server = server_of(params, base, ledger, clients=clients)
    theirs = {category: who[0] for category, who in owners(params.clients).items()}
    seen: list[tuple[str, str, float]] = []
    for done in run_rounds(server, folder, anew=again):
        prompts = weigh(server, done.trained_with).values()
        for owner in params.clients:
            mean = np.mean([p.weights for p in prompts if theirs.get(p.category or "") == owner], axis=0).tolist()
            seen += [(f"weight:{client}", f"{owner}@{done.number}", w) for client, w in zip(params.clients, mean, strict=True)]
        now = done.number + 1
    return done.adapter, seen


def halves(service: ClientService, joins: bool, seed: int) -> tuple[Transport, Transport]:
    """How the client that changes answers before and after: it joins, or its reward model breaks."""
    if joins:
        absent = messages.encode(messages.Failure("internal"))
        return lambda _: absent, service.handle
    return service.handle, replace(service, reward_model=break_reward_model(service.reward_model, seed)).handle
