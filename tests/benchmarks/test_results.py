from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.catalogue import SINGLE_BEST, find_method
from benchmarks.results import (
    CONFIDENCE,
    MEAN,
    RESAMPLES,
    Entry,
    Measurement,
    Results,
    pack_hits,
    read_results,
    write_results,
)
from mor.evaluation.statistics import Interval
from tests.benchmarks.rows import number, random_hits, shares

# --- the CSV ---


def test_hits_are_packed_to_the_bit_whatever_their_number() -> None:
    hits = [bool(int(bit)) for bit in "10110001101"]
    row = Measurement("default", "mor", 1e-3, 0, "preference", "one", 6 / 11, 11, pack_hits(hits))
    assert row.hits == "b1a0"  # 1011 0001, then 101 filled up to 1010 0000
    assert row.answers().tolist() == hits


@pytest.mark.parametrize("change", [{"value": 0.5}, {"n": 3}, {"n": 17}])
def test_hits_that_contradict_their_row_are_refused(change: dict[str, Any]) -> None:
    fields = {"value": 6 / 11, "n": 11} | change
    row = Measurement("default", "mor", 1e-3, 0, "preference", "one", **fields, hits="b1a0")
    with pytest.raises(ValueError, match="default, mor, seed 0, preference one"):
        row.answers()


def test_what_is_written_is_read_again_in_one_order(tmp_path: Path) -> None:
    rows = [*shares("uniform", (1 / 3, 0.2, 0.1), n=30), *shares("mor", (0.9, 0.8, 0.7), rate=5e-4)]
    write_results(tmp_path / "new" / "a.csv", rows)
    write_results(tmp_path / "b.csv", rows[6:] + rows[:6])
    assert read_results(tmp_path / "new" / "a.csv") == rows[6:] + rows[:6]  # mor before uniform
    assert (tmp_path / "new" / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_csv_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("setting,method\ndefault,mor\n")
    with pytest.raises(ValueError, match="expected \\['setting'"):
        read_results(tmp_path / "old.csv")


# --- statistics ---


def difference(
    rows: list[Measurement], first: str, second: str, quantity: str = MEAN, *, resamples: int = RESAMPLES
) -> Interval | None:
    found = Results(rows, resamples=resamples).difference(Entry("default", first), Entry("default", second), quantity)
    return found.interval(CONFIDENCE) if found else None


def test_mean_and_worst_are_taken_in_each_seed_and_then_averaged() -> None:
    rows = shares("mor", (0.5, 1.0, 0.1), seed=0) + shares("mor", (1.0, 0.0, 0.3), seed=1)
    results = Results(rows, resamples=10)
    values = {q: results.estimate(Entry("default", "mor"), f"preference.{q}") for q in ("mean", "worst", "held_out", "two")}
    # mean: (.75 + .5) / 2; worst: (.5 + 0) / 2, not min(.75, .5); held-out: (.1 + .3) / 2; two: (1 + 0) / 2
    assert {q: e and e.value for q, e in values.items()} == pytest.approx(
        {"mean": 0.625, "worst": 0.25, "held_out": 0.2, "two": 0.5}
    )


def test_methods_that_answer_alike_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    hits = [rng.random(77) < 0.5 for _ in range(3)]
    rows = [random_hits(method, seed, hits[seed]) for seed in range(3) for method in ("mor", "uniform")]
    assert difference(rows, "mor", "uniform", resamples=200) == Interval(0.0, 0.0, 0.0)


def test_the_bootstraps_spread_is_that_of_seeds_and_of_questions_added() -> None:
    rng = np.random.default_rng(0)
    hits = [rng.random(300) < p for p in (0.2, 0.3, 0.35, 0.5, 0.55)]
    estimate = Results([random_hits("mor", seed, h) for seed, h in enumerate(hits)], resamples=4000).estimate(
        Entry("default", "mor"), "preference.one"
    )
    p = np.array([h.mean() for h in hits])
    # five seeds drawn from five: var(p) / 5; in each, 300 questions drawn from 300: mean(p (1 - p)) / 300 / 5
    expected = np.sqrt(p.var() / 5 + np.mean(p * (1 - p)) / 300 / 5)
    assert estimate
    assert estimate.draws.std() == pytest.approx(expected, rel=0.05)
    assert estimate.draws.mean() == pytest.approx(p.mean(), abs=4 * expected / np.sqrt(4000))


def test_with_one_seed_the_interval_is_that_of_its_questions() -> None:
    hits = np.arange(400) < 100
    estimate = Results([random_hits("mor", 7, hits)], resamples=4000).estimate(Entry("default", "mor"), "preference.mean")
    assert estimate
    assert estimate.draws.std() == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.05)


def test_pairing_takes_out_what_both_methods_find_hard() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for seed, level in enumerate((0.2, 0.5, 0.8)):
        easy = rng.random(200)
        rows += [random_hits("uniform", seed, easy < level), random_hits("mor", seed, easy < level + 0.1)]
    results = Results(rows, resamples=1000)
    pair = results.paired(Entry("default", "mor"), Entry("default", "uniform"), "preference.mean")
    assert pair
    paired = (pair[0] - pair[1]).draws.std()
    assert paired < 0.3 * np.hypot(pair[0].draws.std(), pair[1].draws.std())


def test_five_seeds_cover_the_truth_less_often_than_they_say() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        rows = [number("mor", "kl", "all", value, seed=seed) for seed, value in enumerate(rng.normal(size=5))]
        interval = Results(rows, resamples=300).interval(Entry("default", "mor"), "kl.all")
        assert interval
        hits += interval.low <= 0 <= interval.high
    # about +-1.96 sqrt(4 / 5) = 1.75 standard errors, which Student's t with 4 degrees of freedom holds 0.85 of the time
    assert 0.78 <= hits / 400 <= 0.90


def test_a_difference_is_taken_over_the_seeds_that_both_have() -> None:
    rows = [*shares("mor", (0.9, 0.9), seed=0), *shares("mor", (0.1, 0.1), seed=1), *shares("uniform", (0.5, 0.5), seed=0)]
    found = difference(rows, "mor", "uniform", resamples=50)
    assert found
    assert found.value == pytest.approx(0.4)  # .9 - .5 at seed 0, not (.9 + .1) / 2 - .5
    assert difference(rows, "mor", "median") is None


def test_a_further_method_changes_no_interval() -> None:
    rows = [row for seed in (0, 1) for row in shares("mor", (0.7, 0.6), seed=seed) + shares("uniform", (0.4, 0.3), seed=seed)]
    further = [row for seed in (0, 1) for row in shares("base", (0.2, 0.1), seed=seed)]
    assert difference(rows, "mor", "uniform") == difference(further + rows, "mor", "uniform")


def test_the_best_single_client_is_the_one_with_the_largest_mean() -> None:
    rows = shares("single_one", (0.9, 0.0)) + shares("single_two", (0.3, 0.8)) + [number("single_two", "kl", "all", 0.3)]
    results = Results(rows, resamples=10)
    estimates = [results.estimate(Entry("default", SINGLE_BEST), q) for q in ("preference.mean", "kl.all")]
    assert [e and e.value for e in estimates] == pytest.approx([0.55, 0.3])  # (.3 + .8) / 2 > (.9 + 0) / 2
    assert "hindsight" in find_method(SINGLE_BEST).label


def test_bytes_are_averaged_over_the_clients_that_took_part() -> None:
    rows = [number("single_one", "up_bytes", "one", 30.0), number("single_one", "up_bytes", "two", 0.0)]
    rows += [number("mor", "up_bytes", "one", 30.0), number("mor", "up_bytes", "two", 10.0)]
    rows += [number("base", "up_bytes", "one", 0.0), number("base", "up_bytes", "two", 0.0)]
    results = Results(rows, resamples=10)
    sent = {m: results.estimate(Entry("default", m), "up_bytes.mean") for m in ("single_one", "mor", "base")}
    assert {m: e and e.value for m, e in sent.items()} == {"single_one": 30.0, "mor": 20.0, "base": 0.0}


def test_results_that_cannot_be_paired_or_are_there_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="there twice"):
        Results(shares("mor", (0.5,)) * 2)
    with pytest.raises(ValueError, match=r"seed 0, one: methods answered \[40, 50\] questions"):
        difference(shares("mor", (0.5,)) + shares("base", (0.5,), n=50), "mor", "base")
