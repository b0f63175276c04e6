"""Fitting the router to choices.

``fit_bradley_terry`` (preferences, static and the online refit): maximise the likelihood of observed choices under the mixed
reward, ``log sigmoid(sum_k w_k(x) m_k)`` with m_k client k's calibrated margin, plus ``trust`` times KL(last router || new
router), a trust region that keeps what a small budget of fresh answers says nothing about. ``mor.routing.means`` needs no
choices.
"""

from __future__ import annotations

import copy

import torch
from torch.nn.functional import logsigmoid

from mor.routing.router import Router, RouterNetwork


def new_network(public: torch.Tensor, hidden: int, clients: int, generator: torch.Generator) -> RouterNetwork:
    """A uniform router whose features are standardised on the public prompts' states (N, features)."""
    network = RouterNetwork(public.shape[1], hidden, clients)
    first = network.hidden
    bound = public.shape[1] ** -0.5
    with torch.no_grad():
        first.weight.copy_((torch.rand(first.weight.shape, generator=generator) * 2 - 1) * bound)
        first.bias.zero_()
    network.mean = public.mean(0)
    network.deviation = public.std(0).clamp_min(1e-4)
    return network


def fit_bradley_terry(
    router: Router,
    features: torch.Tensor,
    margins: torch.Tensor,
    *,
    public: torch.Tensor,
    trust: float,
    steps: int = 200,
    learning_rate: float = 0.02,
) -> tuple[Router, float]:
    """Refit on choices; returns the new router and the final mean log-loss in nats.

    ``features`` (N, features) of the compared prompts; ``margins`` (N, clients): each client's calibrated score of the
    chosen answer minus the rejected one's, NaN where it has none; ``public`` (M, features) anchors the trust region.
    """
    network = copy.deepcopy(router.network)
    assert network is not None, f"the {router.kind} router cannot be fitted"
    known = torch.isfinite(margins)
    margins = torch.where(known, margins, torch.zeros_like(margins))
    last = router.weights(public).clone()
    optimiser = torch.optim.Adam(network.parameters(), lr=learning_rate, weight_decay=1e-3)
    loss = torch.zeros(())
    for _ in range(steps):
        weights = (network(features) / router.temperature).softmax(dim=1) * known
        mixed = (weights * margins).sum(1) / weights.sum(1).clamp_min(1e-6)
        loss = -logsigmoid(mixed).mean()
        new = (network(public) / router.temperature).log_softmax(dim=1)
        kl = (last * (last.clamp_min(1e-9).log() - new)).sum(1).mean()
        optimiser.zero_grad()
        (loss + trust * kl).backward()
        optimiser.step()
    return router.with_network(network), float(loss.detach())
