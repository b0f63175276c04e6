from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy import stats

from mor.evaluation.statistics import Estimate, Interval, mean_of, resample, worst_of


def bootstrap_mean(sample: ArrayLike, *, resamples: int, confidence: float, rng: np.random.Generator) -> Interval:
    return resample({"sample": sample}, resamples, rng)["sample"].interval(confidence)


def bootstrap_difference(
    first: ArrayLike, second: ArrayLike, *, resamples: int, confidence: float, rng: np.random.Generator
) -> Interval:
    both = resample({"first": first, "second": second}, resamples, rng)
    return (both["second"] - both["first"]).interval(confidence)


def test_interval_reads_the_quantiles_of_the_draws() -> None:
    draws = np.arange(101) / 100  # quantiles of 0, 0.01 .. 1 are the numbers themselves
    assert Estimate(0.5, draws).interval(0.9) == Interval(0.5, pytest.approx(0.05), pytest.approx(0.95))


def test_interval_of_a_mean_agrees_with_scipys_percentile_bootstrap() -> None:
    sample = np.random.default_rng(1).random(80) < 0.3
    ours = bootstrap_mean(sample, resamples=9999, confidence=0.95, rng=np.random.default_rng(2))
    theirs = stats.bootstrap(
        (sample,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    # 80 answers move the mean in steps of 1/80 = 0.0125: the two may differ by one step
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.0126)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth, hits, trials = 0.7, 0, 400
    for _ in range(trials):
        interval = bootstrap_mean(rng.random(100) < truth, resamples=400, confidence=0.95, rng=rng)
        hits += interval.low <= truth <= interval.high
    # the standard error of a share of 0.95 over 400 trials is sqrt(.95 * .05 / 400) = 0.011; the percentile bootstrap of
    # 100 answers covers a little less than it says
    assert 0.915 <= hits / trials <= 0.98


def test_models_that_answer_alike_differ_by_exactly_nothing() -> None:
    sample = np.random.default_rng(0).random(50) < 0.5
    difference = bootstrap_difference(sample, sample, resamples=200, confidence=0.95, rng=np.random.default_rng(1))
    assert difference == Interval(0.0, 0.0, 0.0)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(200) < 0.5
    aligned = base | (rng.random(200) < 0.1)  # the same questions, a few more solved
    paired = bootstrap_difference(base, aligned, resamples=2000, confidence=0.95, rng=rng)
    one, other = (resample({"x": x}, 2000, rng)["x"] for x in (base, aligned))
    unpaired = (other - one).interval(0.95)
    assert paired.value == pytest.approx(aligned.mean() - base.mean())
    assert paired.high - paired.low < 0.6 * (unpaired.high - unpaired.low)


def test_mean_and_worst_are_taken_draw_by_draw_and_do_not_depend_on_the_clients_order() -> None:
    one, other = Estimate(0.4, np.array([0.3, 0.5])), Estimate(0.6, np.array([0.5, 0.4]))
    # mean: (.4 + .6) / 2; draws (.3 + .5) / 2, (.5 + .4) / 2.  worst: min(.4, .6); draws min(.3, .5), min(.5, .4)
    for clients in ([one, other], [other, one]):
        assert mean_of(clients).value == pytest.approx(0.5)
        assert mean_of(clients).draws == pytest.approx([0.4, 0.45])
        assert worst_of(clients).value == 0.4
        assert worst_of(clients).draws == pytest.approx([0.3, 0.4])


def test_a_seed_fixes_the_interval() -> None:
    first, second = (
        bootstrap_mean([1, 0, 0, 1, 1], resamples=100, confidence=0.9, rng=np.random.default_rng(5)) for _ in range(2)
    )
    assert first == second


@pytest.mark.parametrize("samples", [{"a": [1, 0], "b": [1]}, {"a": []}])
def test_samples_that_cannot_be_paired_are_refused(samples: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="of one length, at least 1"):
        resample(samples, 10, np.random.default_rng(0))
