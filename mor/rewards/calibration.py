"""Calibration: clients' scores have different scales, so each is standardised before they are mixed.

``Calibration`` holds the mean and deviation of a client's scores over answers to its own validation prompts;
``standardise_groups`` does it afresh in each group of completions, as GDPO does (Liu et al. 2026).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

EPSILON = 1e-6


@dataclass(frozen=True)
class Calibration:
    mean: float
    deviation: float

    @classmethod
    def fit(cls, scores: torch.Tensor) -> Calibration:
        """From raw scores, shape (N,); a constant scorer keeps deviation 1."""
        finite = scores[torch.isfinite(scores)]
        deviation = float(finite.std()) if len(finite) > 1 else 0.0
        return cls(float(finite.mean()) if len(finite) else 0.0, deviation if deviation > EPSILON else 1.0)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        return cls(**json.loads(path.read_text()))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def apply(self, scores: torch.Tensor) -> torch.Tensor:
        return (scores - self.mean) / self.deviation


def standardise_groups(scores: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Standardise each run of ``size`` scores to mean 0 and deviation 1, NaN (unscorable) left out and kept.

    A group whose scores are all equal says nothing and becomes 0. Shape (N,) -> (N,), N a multiple of ``size``.
    """
    groups = scores.reshape(-1, size)
    known = np.isfinite(groups)
    count = np.maximum(known.sum(1, keepdims=True), 1)
    mean = np.where(known, groups, 0).sum(1, keepdims=True) / count
    spread = np.sqrt((np.where(known, groups - mean, 0) ** 2).sum(1, keepdims=True) / count)
    standard = np.where(spread > EPSILON, (groups - mean) / np.maximum(spread, EPSILON), groups - mean)
    result: NDArray[np.float64] = standard.reshape(-1)
    return result
