"""Fitting the router, three ways.

- ``local_update`` (federated): a client improves the router on its own private prompts,

      -mean_i a_i log p_k(x_i),

  with k the client and a_i = 1 where its reward model ranked pair i rightly, -1 where wrongly. A client pulls prompts
  towards itself where it is better than chance, pushes them away where it is worse, and does neither where it guesses.
  The server averages the changes by size and hands them to Adam (FedAdam, Reddi et al. 2021, "Adaptive Federated
  Optimization"), which needs a quarter of the rounds that FedAvg with momentum needs.
- ``fit_bradley_terry`` (preferences, static and the online refit): maximise the likelihood of observed choices under
  the mixed reward, ``log sigmoid(sum_k w_k(x) m_k)`` with m_k client k's calibrated margin, plus ``trust`` times
  KL(last router || new router), a trust region that keeps what a small budget of fresh answers says nothing about.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from mor.routing.router import Router, RouterNetwork, network_from_state


def flat(network: nn.Module) -> torch.Tensor:
    """Trainable weights in order, shape (parameters,)."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


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


def local_update(
    state: dict[str, torch.Tensor],
    features: torch.Tensor,
    ranked_rightly: torch.Tensor,
    client: int,
    *,
    steps: int,
    learning_rate: float,
) -> torch.Tensor:
    """A client's change of the router's flattened weights after ``steps`` full-batch steps; uses no randomness."""
    network = network_from_state(state)
    before = flat(network)
    optimiser = torch.optim.SGD(network.parameters(), lr=learning_rate)
    for _ in range(steps):
        loss = -((2 * ranked_rightly - 1) * network(features).log_softmax(dim=1)[:, client]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return flat(network) - before


def server_optimiser(network: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """FedAdam's server side; ``eps`` is far below the clients' changes."""
    return torch.optim.Adam(network.parameters(), lr=learning_rate, betas=(0.9, 0.99), eps=3e-5)


def apply_updates(network: nn.Module, updates: list[tuple[torch.Tensor, int]], optimiser: torch.optim.Optimizer) -> None:
    """Step along the clients' changes, averaged by examples: the server takes them for a gradient."""
    total = sum(examples for _, examples in updates)
    change = torch.stack([delta * (examples / total) for delta, examples in updates]).sum(dim=0)
    parameters = list(network.parameters())
    for parameter, part in zip(parameters, change.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = -part.view_as(parameter)
    optimiser.step()


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
    fitted = Router(router.kind, router.clients, network, temperature=router.temperature, excluded=router.excluded)
    return fitted, float(loss.detach())
