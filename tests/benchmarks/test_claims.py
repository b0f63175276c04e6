from __future__ import annotations

import pytest

from benchmarks.claims import Claim, check_claims
from benchmarks.results import Measurement, Results
from benchmarks.tables import Table, claims_table, markdown
from mor.evaluation.statistics import Interval
from tests.benchmarks.rows import number, shares


def verdicts(rows: list[Measurement], weak: tuple[str, ...] = ()) -> dict[str, Claim]:
    return {claim.text: claim for claim in check_claims(Results(rows, resamples=200), weak)}


def table(rows: list[Measurement]) -> Table:
    results = Results(rows, resamples=10)
    return claims_table(results, check_claims(results))


def test_a_claim_is_met_missed_or_not_measured() -> None:
    rows = shares("mor", (0.75, 0.75, 0.5), n=400) + shares("uniform", (0.5, 0.5, 0.5), n=400)
    rows += shares("median", (0.65, 0.65, 0.65), n=400) + shares("base", (0.1, 0.1, 0.6), n=400)
    found = verdicts(rows)
    difference = found["mean preference: MoR minus uniform mean"]
    assert difference.verdict == "met"  # .75 - .5 = .25 >= .15
    assert difference.measured
    assert difference.measured.value == pytest.approx(0.25)
    assert found["mean preference: MoR minus median"].verdict == "missed"  # .10 < .15
    assert found["mean preference: MoR minus minimum"].verdict == "not measured"
    assert found["held-out preference: MoR minus base"].verdict == "missed"  # .5 - .6 < 0
    assert "not measured" in markdown(table(rows))


def test_a_difference_whose_intervals_overlap_is_missed_however_large() -> None:
    claim = verdicts(shares("mor", (0.7, 0.7), n=10) + shares("uniform", (0.5, 0.5), n=10))[
        "mean preference: MoR minus uniform mean"
    ]
    assert claim.measured
    assert claim.measured.value == pytest.approx(0.2)  # beyond the bar of .15, but 20 questions tell little
    assert (claim.verdict, claim.remark) == ("missed", "the intervals overlap")


def test_ratios_of_quality_and_bytes_are_held_against_their_bars() -> None:
    rows = shares("mor", (0.8, 0.8), n=400) + shares("oracle", (0.9, 0.9), n=400) + shares("centralised", (0.82, 0.82), n=400)
    rows += shares("fedavg_sft_a", (0.7, 0.9), n=400) + [number("fedavg_sft_a", "up_bytes", s, 5e6) for s in ("one", "two")]
    found = verdicts(rows + [number("mor", "up_bytes", s, 4e4) for s in ("one", "two")])
    assert found["mean preference: MoR as a share of oracle routing"].verdict == "missed"  # .8 / .9 = .89
    assert found["mean preference: MoR as a share of centralised"].verdict == "met"  # .8 / .82 = .976
    ratio = found["uplink bytes a client: FedAvg-SFT (a) over MoR"]
    assert (ratio.verdict, ratio.measured) == ("met", Interval(125.0, 125.0, 125.0))  # 5e6 / 4e4
    assert found["mean preference at those bytes: MoR minus FedAvg-SFT (a)"].verdict == "met"  # .8 - .8
    assert found["mean preference: MoR minus FedAvg-SFT (a)"].verdict == "reported"
    dearer = verdicts(rows + [number("mor", "up_bytes", s, 6e4) for s in ("one", "two")])
    assert dearer["uplink bytes a client: FedAvg-SFT (a) over MoR"].verdict == "missed"  # 5e6 / 6e4 = 83


def test_losses_are_those_of_one_router_between_settings() -> None:
    rows = shares("mor", (0.8, 0.8)) + shares("mor", (0.775, 0.775), setting="hostile")
    rows += shares("mor", (0.75, 0.8), setting="inflated") + shares("mor", (0.5, 0.8), setting="weak")
    found = verdicts(rows, weak=("one",))
    assert found["hostile minus default: MoR, mean preference"].verdict == "met"  # -.025 >= -.03
    assert found["inflated minus default: MoR, mean preference"].verdict == "missed"  # -.025 < -.01
    assert found["weak minus default: MoR, preference of two"].verdict == "met"  # the weak client's own loss is its own
    assert not any("preference of one" in text for text in found)
    assert verdicts(rows)["weak minus default: MoR, preference of one"].verdict == "missed"  # nobody was named weak
    assert verdicts(rows[:4])["weak minus default: MoR, preference of each client that is not weak"].verdict == "not measured"


def test_the_best_router_is_named_and_is_not_one_that_was_spared_a_seed() -> None:
    rows = shares("mor", (0.8, 0.8)) + shares("mor", (0.6, 0.6), seed=1) + shares("mor_top1", (0.75, 0.75))
    assert "about MoR, the best of" in table(rows).note  # top-1's .75 is of the easy seed alone
    rows += shares("mor_top1", (0.7, 0.7), seed=1)
    assert "about MoR top-1, the best of" in table(rows).note  # .725 > .7
