from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import run
from benchmarks.plan import Case, plan_case
from benchmarks.processes import Job
from benchmarks.results import Measurement, read_results, write_results
from benchmarks.run import RESULTS, measure_cases
from benchmarks.settings import with_changes
from mor.config import load_params
from mor.errors import UserError

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(run.store, "experiment", lambda: "0")


def test_clients_without_benchmark_data_are_named_before_any_work() -> None:
    params = with_changes(PARAMS, {"clients": {"radiology": {"backbone": "models/zoo/llava"}}})
    with pytest.raises(UserError, match=r"makes the data of documents, medical, scenes .* none for radiology"):
        measure_cases(params, [Case("default", 0, "mor")], 1)


def test_a_result_is_kept_when_it_is_there_and_takes_the_place_of_its_older_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(jobs: list[Job], at_once: int, done: object) -> list[str]:
        (job,) = (job for job in jobs if job.name == "default seed 0 base")
        job.workspace.folder.mkdir(parents=True)
        fresh = Measurement("default", "base", 0.001, 0, "preference", "scenes", 0.75, key=job.workspace.key)
        write_results(job.workspace.folder / "rows.csv", [fresh])
        done(job, 1)  # type: ignore[operator]
        return ["default seed 0 mor: ValueError: no"]

    stale = [Measurement("default", "base", 0.001, seed, "preference", "scenes", 0.5, key="old") for seed in (0, 1)]
    write_results(RESULTS, stale)
    monkeypatch.setattr(run, "run_jobs", measured)
    with pytest.raises(UserError, match=r"1 units failed; log\.txt"):
        measure_cases(PARAMS, [Case("default", 0, "base"), Case("default", 0, "mor")], 2)
    assert [(row.seed, row.value) for row in read_results(RESULTS)] == [(0, 0.75), (1, 0.5)]
    monkeypatch.setattr(run, "run_jobs", lambda *_: [])
    assert [row.value for row in measure_cases(PARAMS, [Case("default", 0, "base")], 2)] == [0.75]


def test_who_trains_with_a_rate_that_was_never_searched_is_told_and_how_to_search_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_jobs", lambda *_: [])
    case = Case("default", PARAMS.benchmark.search_seed, "uniform", 0.5, True)
    found = Measurement(
        case.listed, case.method, 0.0005, case.seed, "preference", "scenes", 0.9, key=plan_case(PARAMS, case).own.key
    )
    stale = replace(found, method="mor", key="of other settings")
    asked = [Case("default", 0, method) for method in ("base", "mor", "mor_online", "uniform", "single_scenes")]
    write_results(RESULTS, [found, stale])
    measure_cases(PARAMS, asked, 1)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "learning rate" in line)
    assert "for mor, mor_online, single_scenes: that of params.yaml is taken" in line
    assert "`mor benchmark --search --methods mor single_scenes` measures it anew" in line
    measure_cases(PARAMS, [case, Case("default", 0, "base")], 1)
    assert "learning rate" not in capsys.readouterr().err
