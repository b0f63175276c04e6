"""Mixtures without a router."""

import numpy as np
import pytest

from mor.alignment.mixtures import MIXTURES, median, minimum, variance_weighted, weighted_mean

SCORES = np.array([[1.0, -1.0, 0.5], [-1.0, 1.0, np.nan]])
EVERYONE = np.ones((2, 3))


def test_the_least_content_and_the_median_client_decide() -> None:
    assert minimum(SCORES, EVERYONE, SCORES, 2).tolist() == [-1.0, -1.0]
    assert median(SCORES, EVERYONE, SCORES, 2).tolist() == [0.5, 0.0]


@pytest.mark.parametrize("name", ["min", "median", "variance"])
def test_a_client_without_weight_has_no_say(name: str) -> None:
    alone = np.array([[1.0, 0.0, 0.0]] * 2)
    assert MIXTURES[name](SCORES, alone, SCORES, 2).tolist() == [1.0, -1.0]


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_what_nobody_scored_is_nan(name: str) -> None:
    assert np.isnan(MIXTURES[name](np.full((2, 3), np.nan), EVERYONE, np.full((2, 3), np.nan), 2)).all()


def test_a_client_counts_by_its_variance_in_the_group() -> None:
    raw = np.array([[3.0, 1.0], [-3.0, -1.0]])  # variances 9 and 1
    mixed = variance_weighted(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.ones((2, 2)), raw, 2)
    assert mixed == pytest.approx([0.8, -0.8])  # (9 - 1) / 10


def test_where_nobody_tells_answers_apart_all_count_the_same() -> None:
    assert variance_weighted(SCORES, EVERYONE, np.zeros((2, 3)), 2) == pytest.approx(weighted_mean(SCORES, EVERYONE))
