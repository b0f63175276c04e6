"""Rules that mix the clients' scores: MoR's own, weighted by the router, and those that know no weights.

All have one signature: standardised scores ``z`` (N, K), NaN where a client has none; the router's weights (N, K), of which
the others only heed which are above 0; and the scores ``raw`` (N, K) on the clients' own calibrated scales, in groups of
``size`` rows. They give (N,), NaN where no weighted client has a score. A new rule
is a function here and a line in ``MIXTURES``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Mixture = Callable[[Scores, Scores, Scores, int], Scores]


def weighted_mean(scores: Scores, weights: Scores, raw: Scores | None = None, size: int = 1) -> Scores:
    """The router decides: the mean over the clients that have a score, by their weights."""
    usable = np.where(np.isfinite(scores), weights, 0.0)
    total = usable.sum(axis=1)
    mixed = (usable * np.where(np.isfinite(scores), scores, 0.0)).sum(axis=1)
    return np.where(total > 0, mixed / np.where(total > 0, total, 1.0), np.nan)


def minimum(scores: Scores, weights: Scores, raw: Scores, size: int) -> Scores:
    """The least content client decides (worst-case optimisation; Coste et al. 2023, "Reward Model Ensembles")."""
    return _over_clients(np.nanmin, scores, weights)


def median(scores: Scores, weights: Scores, raw: Scores, size: int) -> Scores:
    """The median client decides: robust to a minority of outliers (Yin et al. 2018)."""
    return _over_clients(np.nanmedian, scores, weights)


def variance_weighted(scores: Scores, weights: Scores, raw: Scores, size: int) -> Scores:
    """A client counts by how much it tells a group's answers apart: weights are its variance in the group."""
    groups = raw.reshape(-1, size, raw.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a client without a score in a group has no variance
        spread = np.nan_to_num(np.nanvar(groups, axis=1))  # (groups, K)
    confident = np.repeat(spread, size, axis=0) * (weights > 0)
    nobody = confident.sum(axis=1, keepdims=True) == 0
    return weighted_mean(scores, np.where(nobody, weights, confident), raw, size)


def _over_clients(statistic: Callable[..., Scores], scores: Scores, weights: Scores) -> Scores:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # rows that nobody scored stay NaN
        return statistic(np.where(weights > 0, scores, np.nan), axis=1)


MIXTURES: dict[str, Mixture] = {"mean": weighted_mean, "min": minimum, "median": median, "variance": variance_weighted}
