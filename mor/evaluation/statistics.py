"""Percentile bootstrap intervals (Efron & Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 6, 8 and 13).

The idea: a suite's questions are a sample from all questions that could have been asked, so resample them with
replacement ``resamples`` times, recompute the statistic each time, and read the interval off its quantiles::

    theta*_b = s(x*_b),  b = 1..B        [low, high] = quantiles of theta* at (1 - c) / 2 and (1 + c) / 2

An ``Estimate`` keeps the draws ``theta*``, so that differences and combinations stay honest:

- *paired difference*: models answer the same questions, so every resample takes the same questions for all of them;
  what two models find hard together cancels out;
- *over clients*: questions are resampled within each client, never between them (a stratified sample), then the
  clients' means are averaged, or their minimum taken. The minimum of noisy means lies below the minimum of the
  true ones; its interval shows that, and it is not corrected.

``scipy.stats.bootstrap`` does the first of these, but pairs within clients while clients stay independent are beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Interval:
    """A statistic with the ends of its confidence interval, in the statistic's own unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A statistic on the sample, and on each of B resamples: ``draws`` of shape (B,)."""

    value: float
    draws: NDArray[np.float64]

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference, draw by draw: paired when both were drawn by one call of ``resample``."""
        return Estimate(self.value - other.value, self.draws - other.draws)

    def interval(self, confidence: float) -> Interval:
        """The percentile interval that covers ``confidence``, a share in (0, 1)."""
        low, high = np.quantile(self.draws, [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(self.value, float(low), float(high))


def resample(samples: Mapping[str, ArrayLike], resamples: int, rng: np.random.Generator) -> dict[str, Estimate]:
    """Means of ``samples``, each of shape (N,) on the same N questions, resampled jointly; raises ``ValueError`` if not so."""
    columns = {name: np.asarray(sample, dtype=np.float64) for name, sample in samples.items()}
    sizes = {name: column.shape for name, column in columns.items()}
    if len(set(sizes.values())) != 1 or min(next(iter(sizes.values())), default=0) < 1:
        raise ValueError(f"paired samples must be of one length, at least 1; got shapes {sizes}")
    n = next(iter(sizes.values()))[0]
    chosen = rng.integers(n, size=(resamples, n))  # (B, N), shared by all columns
    return {name: Estimate(float(column.mean()), column[chosen].mean(axis=1)) for name, column in columns.items()}


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over clients: every client counts the same, however many questions it has."""
    return Estimate(float(np.mean([e.value for e in estimates])), np.mean([e.draws for e in estimates], axis=0))


def worst_of(estimates: Sequence[Estimate]) -> Estimate:
    """The worst client; which client that is may change from draw to draw."""
    return Estimate(min(e.value for e in estimates), np.min([e.draws for e in estimates], axis=0))
