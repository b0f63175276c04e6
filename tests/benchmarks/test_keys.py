"""Keys of committed rows: a change here would leave what is published out of every report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.catalogue import recipes
from benchmarks.plan import Case, plan_case, up_to_date
from benchmarks.results import Measurement, read_results
from benchmarks.run import RESULTS
from benchmarks.settings import method_params
from mor.config import load_params
from mor.routing.router import LEARNED

ROOT = Path(__file__).parents[2]
PARAMS = load_params(ROOT / "params.yaml")
PUBLISHED = read_results(ROOT / RESULTS)


@pytest.fixture(scope="module")
def kept() -> Iterator[list[Measurement]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        yield up_to_date(PARAMS, PUBLISHED)


def test_published_results_are_those_of_the_present_settings_but_for_learned_routers(kept: list[Measurement]) -> None:
    """How routers are fitted has changed since; README names the commit that the tables belong to."""
    known = recipes(PARAMS.clients)
    learned = {
        name
        for name, recipe in known.items()
        if recipe.objective == "grpo" and method_params(PARAMS, recipe, 1.0).router.kind in LEARNED
    }
    assert {row.method for row in PUBLISHED if row not in set(kept)} <= learned
    assert {"uniform", "oracle", "fedavg_sft_a", "base"} <= {row.method for row in kept}


def test_every_setting_keeps_its_published_rows_whatever_its_settings_are_called_now(kept: list[Measurement]) -> None:
    assert {row.setting for row in PUBLISHED} - {row.setting for row in kept} <= {"broken", "newcomer"}  # learned routers alone
    others = {row for row in PUBLISHED if row.setting == "agreeing" and row.method == "uniform"}
    assert others
    assert others <= set(kept)


@pytest.mark.parametrize(
    ("case", "key"),
    [
        (Case("default", 0, "base"), "794500bba632"),
        (Case("default", 0, "centralised", 2.0), "f2fd40593b15"),
        (Case("default", 0, "fedprox_sft_a", 2.0), "3274c9fda102"),
        (Case("default", 0, "oracle"), "1f42e471d7c0"),
        (Case("default", 0, "single_medical"), "db7efba1f28d"),
        (Case("agreeing", 0, "uniform", 0.5), "7a03c27a9bbb"),  # keyed by the name that its setting had then
        (Case("homogeneous", 0, "uniform", 0.5), "4d8f9a0c781f"),
        (Case("hostile", 0, "uniform", 0.5), "6961f6689bd5"),
        (Case("inflated", 0, "uniform", 0.5), "ddb28e839f9c"),
        (Case("noise", 0, "uniform", 0.5), "5f9c1d5afcce"),
        (Case("unbalanced", 0, "uniform", 0.5), "4c40811f99ca"),
        (Case("weak", 0, "fedavg_sft_b", 4.0), "508ac1cd8d67"),
        (Case("default", 100, "centralised", 0.5, True), "c0bfa1625b71"),
    ],
)
def test_keys_are_those_of_committed_rows(case: Case, key: str, kept: list[Measurement]) -> None:
    assert plan_case(PARAMS, case).own.key == key
    assert key in {row.key for row in kept if (row.setting, row.method, row.seed) == (case.listed, case.method, case.seed)}
