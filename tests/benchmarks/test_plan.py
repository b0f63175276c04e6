"""The plan: what is shared is made once, nothing is measured twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.catalogue import DEFAULT, federations, headline_methods
from benchmarks.keys import folder_digest
from benchmarks.plan import Case, plan_case, plan_cases, up_to_date
from benchmarks.processes import Job
from benchmarks.results import Measurement
from benchmarks.settings import with_changes
from mor.config import Params, load_params

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
CLIENTS = list(PARAMS.clients)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def jobs(cases: list[Case], rows: list[Measurement] | None = None, params: Params = PARAMS) -> list[Job]:
    return list(plan_cases(params, cases, rows or []).jobs.values())


def names(cases: list[Case], rows: list[Measurement] | None = None, params: Params = PARAMS) -> list[str]:
    return [job.name for job in jobs(cases, rows, params)]


def row(case: Case, **changes: object) -> Measurement:
    key = plan_case(PARAMS, case).own.key
    made = Measurement(case.listed, case.method, 0.001, case.seed, "preference", "documents", 0.5, key=key)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_methods_of_one_federation_share_data_and_reward_models() -> None:
    units = names([Case("default", 0, method) for method in headline_methods(CLIENTS)])
    assert sum(name.startswith("data") for name in units) == 1
    assert sorted(name.split()[2].split("-")[0] for name in units if name.startswith("reward")) == sorted([*CLIENTS, "pooled"])
    assert len(units) == 1 + 4 + len(headline_methods(CLIENTS))
    for job in jobs([Case("default", 0, "mor")]):  # reward models wait for the data alone
        assert len(job.needs) == {"data": 0, "reward": 1, "default": 4}[job.name.split()[0]]


def test_an_attacker_costs_one_reward_model_more_and_nothing_else() -> None:
    default, hostile = Case("default", 0, "mor"), Case("hostile", 0, "mor")
    more = set(names([default, hostile])) - set(names([default]))
    assert {name.split("-")[0] for name in more} == {"reward model hostile", "hostile seed 0 mor"}


def test_a_weak_backbone_is_made_where_a_method_trains_with_it() -> None:
    assert names([Case("weak", 0, "mor")])[0] == "weak backbone"
    assert "weak backbone" not in names([Case("weak", 0, "base"), Case("default", 0, "mor")])


def test_what_is_made_already_is_not_made_again() -> None:
    planned = plan_case(PARAMS, Case("default", 0, "uniform"))
    made = [planned.data.folder / "done", *(w.folder / "models" / "rewards" / c for c, w in planned.rewards.items())]
    for path in made:
        path.mkdir(parents=True)
    (job,) = jobs([planned.case])
    assert (job.name, job.needs) == ("default seed 0 uniform", ())


def test_what_is_measured_is_not_measured_again_until_its_settings_change() -> None:
    case = Case("default", 0, "mor")
    assert names([case], [row(case)]) == []
    assert names([case], [row(case, seed=1)])[-1] == str(case)
    assert names([case], [row(case)], with_changes(PARAMS, {"grpo.beta": 0.1}))[-1] == str(case)
    assert names([case], [row(case)], with_changes(PARAMS, {"threads": 3})) == []


def test_results_of_other_settings_or_clients_are_left_out() -> None:
    fresh = row(Case("default", 0, "mor"))
    searched = row(Case("default", 100, "uniform", 0.5, True), learning_rate=0.0005)
    gone = replace(fresh, method="single_someone", key="gone")
    assert up_to_date(PARAMS, [fresh, searched, gone, replace(fresh, key="other")]) == [fresh, searched]
    best_rate_is_another = row(Case("default", 100, "mor", 0.5, True), learning_rate=0.0005)
    assert up_to_date(PARAMS, [fresh, best_rate_is_another]) == [best_rate_is_another]


@pytest.mark.parametrize(
    ("method", "setting", "again"),
    [("uniform", "router.hidden", False), ("mor", "router.hidden", True), ("fedavg_sft_a", "grpo.beta", False),
     ("fedavg_sft_a", "benchmark.averaging.rounds", True), ("base", "grpo.beta", False)],
)  # fmt: skip
def test_a_method_is_measured_again_only_for_what_it_depends_on(method: str, setting: str, again: bool) -> None:
    case = Case("default", 0, method)
    assert bool(names([case], [row(case)], with_changes(PARAMS, {setting: 3}))) == again


@pytest.mark.parametrize(("method", "again"), [("mor", True), ("fedavg_sft_a", True), ("fedavg_sft_b", False)])
def test_other_weights_of_the_base_are_measured_again(method: str, again: bool) -> None:
    """Setting (b) starts from a client's own model instead."""
    case = Case("default", 0, method)
    done = row(case)
    folder_digest.cache_clear()
    Path(PARAMS.base).mkdir(parents=True)
    (Path(PARAMS.base) / "model.safetensors").write_bytes(b"other")
    assert bool(names([case], [done])) == again


@pytest.mark.parametrize("clients", [["scenes"], ["one", "two"], CLIENTS])
def test_the_headline_is_of_whatever_clients_there_are(clients: list[str]) -> None:
    """One that is no longer there, or has another name, once ended in a KeyError."""
    params = with_changes(PARAMS, {"clients": {name: {"backbone": "models/zoo/llava"} for name in clients}})
    units = names([Case("default", 0, method) for method in headline_methods(clients)], params=params)
    assert {f"default seed 0 single_{name}" for name in clients} == {name for name in units if " single_" in name}


@pytest.mark.parametrize("setting", federations(CLIENTS, PARAMS.base))
def test_a_method_shares_the_folders_of_its_own_clients_and_no_others(setting: str) -> None:
    planned = plan_case(PARAMS, Case(setting, 0, "mor"))
    folders = {path.name for path in planned.own.shared if path.parent == Path("data/clients")}
    assert folders == planned.own.params.clients.keys() == {*CLIENTS, *planned.federation.extra}
    assert all(source.is_absolute() for source in planned.own.shared.values())
    single = plan_case(PARAMS, Case(DEFAULT, 0, "single_scenes"))
    assert [path.name for path in single.own.shared if path.parent == Path("data/clients")] == ["scenes"]
