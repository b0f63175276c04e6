"""What a client tells the router: the mean of its prompts' features in a public basis, and its accuracy, clipped and noised.

A pair moves the mean of n prompts by at most 2 sqrt(C) / n, for each is clipped to norm sqrt(C), and the accuracy over v pairs
by 1 / v. Both are scaled to sensitivities 1 and ``ACCURACY_SHARE`` and released by one Gaussian mechanism (Dwork and Roth
2014, appendix A), whose noise multiplier opacus' Renyi accountant gives (Mironov 2017).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch

ACCURACY_SHARE = 0.5


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
