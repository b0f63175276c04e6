"""A router from one message a client: the mean of its prompts' features, clipped and noised.

The server publishes a basis made of public prompts, the whitened principal components of their features,

    z(x) = clip(W (e(x) - mu)),   W = diag(s)^-1 V over the C largest components,   |z| <= sqrt(C),

and client k answers once with ``m_k``, the mean of z over its own prompts, and ``a_k``, how often its reward model ranks its
own pairs rightly. The router is the nearest mean, in closed form:

    w(x) = softmax_k(z(x)' S^-1 m_k - m_k' S^-1 m_k / 2),

S the covariance of public prompts about the centre of those that are nearest to the same client: linear discriminant analysis
(Fisher 1936) whose within-class covariance needs no client, for public prompts show how prompts scatter. Every client has
the same prior, however many prompts it has; one whose a_k is no better than chance has no weight. What a client can do to the
router is bounded: its mean lies in the ball of radius sqrt(C), or is refused.

How private that answer is, its client decides (``mor.federation.private_mean``); what the server computes of it is free.

A gradient instead of a mean would be steered by the weights that the server sends: 8 crafted requests gave away 298 of 300
private feature vectors.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from mor.federation.private_mean import clipped

CHANCE = 0.6  # accuracy up to which a client is taken for guessing: 0.5 and what 30 coins and the noise may add
ROUNDS = 3  # of assigning public prompts to the means and measuring their scatter
SHRINKAGE = 0.1  # of that scatter towards a round one


def basis(public: torch.Tensor, components: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (F,) and whitening projection (F, C) of the public prompts' features (N, F); C is at most ``components``."""
    mean = public.mean(0)
    _, scales, directions = torch.linalg.svd(public - mean, full_matrices=False)
    scales = scales / math.sqrt(len(public))
    kept = min(components, len(public) - 1, int((scales > 1e-6 * scales[0]).sum()))
    signs = directions[:kept].gather(1, directions[:kept].abs().argmax(1, keepdim=True)).sign()  # SVD leaves them open
    projection: torch.Tensor = (signs * directions[:kept] / scales[:kept, None]).T.contiguous()
    return mean, projection


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

    ``public`` (N, F) are the public prompts' features, whose scatter about the means says how sharply to decide.
    """
    network = MeansNetwork(projection.shape[0], projection.shape[1], len(means))
    network.mean, network.projection = mean, projection
    known = means[present].double()
    precision = torch.linalg.inv(within_covariance(clipped(public, mean, projection).double(), known))
    with torch.no_grad():
        network.weight[present] = (known @ precision).float()
        network.bias[present] = -((known @ precision) * known).sum(1).float() / 2
    return network


def within_covariance(z: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Within-class covariance (C, C) of ``z`` (N, C), float64, about the centres of those nearest to each of ``means`` (K, C).

    Nearest first in the basis as it is, then, by shares, under the covariance found so far. Shrunk towards a round one.
    """
    covariance = torch.eye(z.shape[1], dtype=z.dtype)
    for round_ in range(ROUNDS):
        closeness = -_distances(z, means, covariance) / 2  # (N, K)
        shares = closeness.softmax(1) if round_ else nn.functional.one_hot(closeness.argmax(1), len(means)).to(z.dtype)
        centres = shares.T @ z / shares.sum(0).clamp_min(1e-9)[:, None]
        residuals = [(z - centre) * share[:, None].sqrt() for centre, share in zip(centres, shares.T, strict=True)]
        found = sum(residual.T @ residual for residual in residuals) / len(z)
        round_one = found.diagonal().mean().clamp_min(1e-6) * torch.eye(z.shape[1], dtype=z.dtype)
        covariance = (1 - SHRINKAGE) * found + SHRINKAGE * round_one
    return covariance


def _distances(z: torch.Tensor, means: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Squared Mahalanobis distances, shape (N, K)."""
    half = torch.linalg.cholesky(torch.linalg.inv(covariance))
    distances: torch.Tensor = torch.cdist(z @ half, means @ half) ** 2
    return distances
