"""The benchmark's plan: what is shared is made once, nothing is measured twice, a failure stops only what needs it."""

from __future__ import annotations

from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.catalogue import headline, methods
from benchmarks.results import SEARCH, Row, read_results
from benchmarks.run import Cell, Unit, changed, compare, own_settings, plan, up_to_date, weights
from mor.config import Params, UserError, load_params
from mor.routing.router import LEARNED

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CLIENTS = list(PARAMS.clients)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(cells: list[Cell], rows: list[Row] | None = None, params: Params = PARAMS) -> list[str]:
    return [unit.name for unit in plan(params, cells, rows or [])]


def row(unit: Unit, **changes: object) -> Row:
    assert unit.cell
    setting = SEARCH if unit.cell.search else unit.cell.setting
    key = unit.arguments[1].key
    made = Row(setting, unit.cell.method, 0.001, unit.cell.seed, "preference", "documents", 0.5, key=key)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_methods_of_one_federation_share_data_and_reward_models() -> None:
    units = names([Cell("default", 0, method) for method in headline(CLIENTS)])
    assert sum(name.startswith("data") for name in units) == 1
    assert sorted(name.split()[2].split("-")[0] for name in units if name.startswith("reward")) == sorted([*CLIENTS, "pooled"])
    assert len(units) == 1 + 4 + len(headline(CLIENTS))
    for unit in plan(PARAMS, [Cell("default", 0, "mor")], []):  # reward models wait for the data alone
        assert len(unit.needs) == {"data": 0, "reward": 1, "default": 4}[unit.name.split()[0]]


def test_an_attacker_costs_one_reward_model_more_and_nothing_else() -> None:
    default, hostile = Cell("default", 0, "mor"), Cell("hostile", 0, "mor")
    more = set(names([default, hostile])) - set(names([default]))
    assert {name.split("-")[0] for name in more} == {"reward model hostile", "hostile seed 0 mor"}


def test_what_is_measured_is_not_measured_again_until_its_settings_change() -> None:
    cell = Cell("default", 0, "mor")
    unit = plan(PARAMS, [cell], [])[-1]
    assert names([cell], [row(unit)]) == []
    assert names([cell], [row(unit, seed=1)])[-1] == unit.name
    assert names([cell], [row(unit)], changed(PARAMS, {"grpo.beta": 0.1}))[-1] == unit.name
    assert names([cell], [row(unit)], changed(PARAMS, {"threads": 3})) == []


def test_results_of_other_settings_or_clients_are_left_out() -> None:
    fresh = row(plan(PARAMS, [Cell("default", 0, "mor")], [])[-1])
    searched = row(plan(PARAMS, [Cell("default", 100, "uniform", 0.5, True)], [])[-1], learning_rate=0.0005)
    gone = replace(fresh, method="single_someone", key="gone")
    assert up_to_date(PARAMS, [fresh, searched, gone, replace(fresh, key="other")]) == [fresh, searched]
    best_rate_is_another = replace(
        searched, method="mor", key=plan(PARAMS, [Cell("default", 100, "mor", 0.5, True)], [])[-1].arguments[1].key
    )
    assert up_to_date(PARAMS, [fresh, best_rate_is_another]) == [best_rate_is_another]


@pytest.mark.parametrize(
    ("method", "setting", "again"),
    [("uniform", "router.hidden", False), ("mor", "router.hidden", True), ("fedavg_sft_a", "grpo.beta", False),
     ("fedavg_sft_a", "benchmark.averaging.rounds", True), ("base", "grpo.beta", False)],
)  # fmt: skip
def test_a_method_is_measured_again_only_for_what_it_depends_on(method: str, setting: str, again: bool) -> None:
    unit = plan(PARAMS, [Cell("default", 0, method)], [])[-1]
    assert bool(names([Cell("default", 0, method)], [row(unit)], changed(PARAMS, {setting: 3}))) == again


@pytest.mark.parametrize(("method", "again"), [("mor", True), ("fedavg_sft_a", True), ("fedavg_sft_b", False)])
def test_other_weights_of_the_base_are_measured_again(method: str, again: bool) -> None:
    """Setting (b) starts from a client's own model instead."""
    cell = Cell("default", 0, method)
    done = row(plan(PARAMS, [cell], [])[-1])
    weights.cache_clear()
    Path(PARAMS.base).mkdir(parents=True)
    (Path(PARAMS.base) / "model.safetensors").write_bytes(b"other")
    try:
        assert bool(names([cell], [done])) == again
    finally:
        weights.cache_clear()


@pytest.mark.parametrize("clients", [["scenes"], ["one", "two"], CLIENTS])
def test_the_headline_is_of_whatever_clients_there_are(clients: list[str]) -> None:
    """One that is no longer there, or has another name, once ended in a KeyError."""
    described = {name: {"backbone": "models/zoo/llava"} for name in clients}
    params = changed(PARAMS, {"clients": described})
    units = names([Cell("default", 0, method) for method in headline(clients)], params=params)
    assert {f"default seed 0 single_{name}" for name in clients} == {name for name in units if " single_" in name}


def test_clients_without_benchmark_data_are_named_before_any_work() -> None:
    described = {"radiology": {"backbone": "models/zoo/llava"}}
    values = changed(PARAMS, {"clients": described}).model_dump(exclude_none=True)
    Path("params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"makes the data of documents, medical, scenes .* none for radiology"):
        compare([Cell("default", 0, "mor")], 1)


def test_published_results_are_those_of_the_present_settings_but_for_learned_routers() -> None:
    """How routers are fitted has changed since; README names the commit that the tables belong to."""
    root = Path(__file__).parents[2]
    published = read_results(root / "benchmarks" / "results" / "benchmark.csv")
    weights.cache_clear()
    try:
        with chdir(root):
            kept = up_to_date(PARAMS, published)
    finally:
        weights.cache_clear()
    learned = {name for name, method in methods(CLIENTS).items() if own_settings(PARAMS, method, 1.0).router.kind in LEARNED}
    assert {row.method for row in published if row not in set(kept)} <= {
        name for name in learned if methods(CLIENTS)[name].objective == "grpo"
    }
    assert {"uniform", "oracle", "fedavg_sft_a", "base"} <= {row.method for row in kept}
