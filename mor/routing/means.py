"""A router from one message a client: the mean of its prompts' features, clipped and noised.

The server publishes a basis made of public prompts, the whitened principal components of their features,

    z(x) = clip(W (e(x) - mu)),   W = diag(s)^-1 V over the C largest components,   |z| <= sqrt(C),

and client k answers once with ``m_k``, the mean of z over its own prompts, and ``a_k``, how often its reward model ranks its
own pairs rightly. The router is the nearest mean, in closed form:

    w(x) = softmax_k((z(x) . m_k - |m_k|^2 / 2) / s^2),

s^2 the spread of public prompts about their nearest mean, in the span of the means. Every client has the same prior, however
many prompts it has; one whose a_k is no better than chance has no weight. What a client can do to the router is bounded: its
mean lies in the ball of radius sqrt(C), or is refused.

Privacy: a pair moves the mean of n by at most 2 sqrt(C) / n and the accuracy over v pairs by 1 / v. Both are scaled to
sensitivities 1 and ``ACCURACY_SHARE`` and released by one Gaussian mechanism (Dwork and Roth 2014, appendix A), whose noise
multiplier opacus' Renyi accountant gives (Mironov 2017). All that the server computes of it afterwards is free.

A gradient instead of a mean would be steered by the weights that the server sends: 8 crafted requests gave away 298 of 300
private feature vectors.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import nn

ACCURACY_SHARE = 0.5
CHANCE = 0.6  # accuracy up to which a client is taken for guessing: 0.5 and what 30 coins and the noise may add
_LEAST_SPREAD = 1e-3


def basis(public: torch.Tensor, components: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (F,) and whitening projection (F, C) of the public prompts' features (N, F); C is at most ``components``."""
    mean = public.mean(0)
    _, scales, directions = torch.linalg.svd(public - mean, full_matrices=False)
    scales = scales / math.sqrt(len(public))
    kept = min(components, len(public) - 1, int((scales > 1e-6 * scales[0]).sum()))
    signs = directions[:kept].gather(1, directions[:kept].abs().argmax(1, keepdim=True)).sign()  # SVD leaves them open
    projection: torch.Tensor = (signs * directions[:kept] / scales[:kept, None]).T.contiguous()
    return mean, projection


def clipped(features: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    """Features (N, F) in the basis, each of norm at most sqrt(C), shape (N, C).

    In float64, which no float32 basis makes overflow: an infinite row would become NaN, and no noise hides that.
    """
    z = (features.double() - mean.double()) @ projection.double()
    shrink: torch.Tensor = (math.sqrt(projection.shape[1]) / z.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1.0)
    return (z * shrink).to(features.dtype)


def noise_multiplier(epsilon: float, delta: float) -> float:
    """Deviation of the Gaussian noise, in sensitivities, that makes one release (epsilon, delta)-private; 0 for epsilon 0."""
    if epsilon == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders that its search passes through
        from opacus.accountants.utils import get_noise_multiplier

        found: float = get_noise_multiplier(
            target_epsilon=epsilon, target_delta=delta, sample_rate=1.0, steps=1, accountant="rdp"
        )
    return found


def released(
    z: torch.Tensor, ranked_rightly: torch.Tensor, *, epsilon: float, delta: float, rng: np.random.Generator
) -> tuple[torch.Tensor, float]:
    """What a client says: its noised mean (C,), inside the ball, and its noised accuracy in [0, 1].

    ``z`` (N, C) as ``clipped`` gives it; ``ranked_rightly`` (V,) of 0 and 1. Raises ``ValueError`` where either is empty.
    """
    if not len(z) or not len(ranked_rightly):
        raise ValueError("a client without prompts of its own has no mean to tell")
    components = z.shape[1]
    deviation = noise_multiplier(epsilon, delta) * math.sqrt(1 + ACCURACY_SHARE**2)
    noise = torch.from_numpy(rng.standard_normal(components + 1)).float()
    mean = z.mean(0) + noise[:-1] * deviation * 2 * math.sqrt(components) / len(z)
    accuracy = ranked_rightly.mean() + noise[-1] * deviation / (ACCURACY_SHARE * len(ranked_rightly))
    inside = (math.sqrt(components) / mean.norm().clamp_min(1e-12)).clamp(max=1.0)
    return mean * inside * (1 - 1e-6), float(accuracy.clamp(0.0, 1.0))


class MeansNetwork(nn.Module):
    """Features (N, F) -> logits (N, clients): linear in the clipped features of the basis, which stays as it is."""

    mean: torch.Tensor
    projection: torch.Tensor

    def __init__(self, features: int, components: int, clients: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("projection", torch.zeros(features, components))
        self.weight = nn.Parameter(torch.zeros(clients, components))
        self.bias = nn.Parameter(torch.zeros(clients))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return clipped(features, self.mean, self.projection) @ self.weight.T + self.bias


def nearest_mean(
    means: torch.Tensor, present: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor, public: torch.Tensor
) -> MeansNetwork:
    """The router's network from the clients' ``means`` (K, C) in the basis; rows that are not ``present`` (K,) are left out.

    ``public`` (N, F) are the public prompts' features, whose spread about the means says how sharply to decide.
    """
    network = MeansNetwork(projection.shape[0], projection.shape[1], len(means))
    network.mean, network.projection = mean, projection
    known = means[present]
    spread = 1.0
    if len(known) > 1:
        directions, scales, _ = torch.linalg.svd((known - known.mean(0)).T, full_matrices=False)
        span = directions[:, scales > 1e-3 * scales[0].clamp_min(1e-12)]  # (C, rank): equal means span nothing between them
        if span.shape[1]:
            nearest = torch.cdist(clipped(public, mean, projection) @ span, known @ span).min(1).values
            spread = max(float((nearest**2).mean()) / span.shape[1], _LEAST_SPREAD)
    with torch.no_grad():
        network.weight[present] = known / spread
        network.bias[present] = -(known**2).sum(1) / (2 * spread)
    return network
