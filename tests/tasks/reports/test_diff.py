"""Two executions in a real MLflow store in a temporary folder, compared as a user does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from mor.config import load_params
from mor.errors import UserError
from tasks.reports import diff
from tasks.reports.diff_console import print_difference
from tasks.reports.difference import compare_results
from tasks.tracking import runs as tracking
from tasks.tracking import store

ROOT = Path(__file__).parents[3]


def evaluation(hits: int) -> dict[str, Any]:
    row = {"image": "0.png", "prompt": "How many?", "answer": "three", "category": "count"}
    answers = [
        row | {"id": str(i), "text": "three" if i < hits else "four", "preferred": i < hits, "right": i < hits}
        for i in range(20)
    ]
    whole = {"answers": {"base": {"scenes": answers}, "aligned": {"scenes": answers}}, "pairs": {}, "routing": {}, "wire": {}}
    return whole | {"clients": ["scenes"], "seconds": {}, "settings": {}}


def execute(name: str, hits: int, *, seed: int, data: str, tags: dict[str, str] | None = None) -> str:
    """An execution as the pipeline leaves it."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"seed": seed}
    params["evaluation"] |= {"resamples": 100, "samples": 2}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    deps = [{"path": "data/clients/scenes", "md5": data}, {"path": "data/eval", "md5": "eeeeeeee"}]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"reward@scenes": {"cmd": "x", "deps": deps}}}))
    Path("reports").mkdir(exist_ok=True)
    Path("reports/evaluation.json").write_text(json.dumps(evaluation(hits)))
    Path("reports/metrics.json").write_text(json.dumps({"router": {"accuracy": hits / 20}}))
    settings = load_params()
    made = tracking.open_parent(name, settings, name, tags)
    tracking.reconcile(made, settings)
    tracking.close_parent(made, "FINISHED")
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """One store for all tests: two nights, and two executions by hand of the same name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        clear()
        made = {
            "a": execute("night 2026-01-01", 5, seed=0, data="aaaaaaaa", tags={"mor.night": "2026-01-01"}),
            "b": execute("night 2026-01-02", 15, seed=1, data="bbbbbbbb", tags={"mor.night": "2026-01-02"}),
            "c": execute("by hand", 15, seed=1, data="bbbbbbbb"),
            "d": execute("by hand", 15, seed=1, data="bbbbbbbb"),
        }
        Path("data/eval").mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save("data/eval/0.png")
        yield made
        clear()


def clear() -> None:
    store.mlflow_client.cache_clear()
    store.experiment.cache_clear()


@pytest.mark.parametrize("name", ["2026-01-01", "night 2026-01-01", "night/2026-01-01"])
def test_a_night_is_found_by_its_date(runs: dict[str, str], name: str) -> None:
    assert diff.find_run(name).info.run_id == runs["a"]


def test_a_run_is_found_by_its_id_and_the_beginning_of_it(runs: dict[str, str]) -> None:
    assert diff.find_run(runs["c"]).info.run_id == runs["c"]
    assert diff.find_run(runs["c"][:10]).info.run_id == runs["c"]


def test_a_stage_stands_for_its_execution(runs: dict[str, str]) -> None:
    (stage,) = store.search_runs(f"tags.`mlflow.parentRunId` = '{runs['b']}'")
    assert diff.find_run(stage.info.run_id).info.run_id == runs["b"]


def test_a_name_of_two_runs_is_refused_with_their_ids(runs: dict[str, str]) -> None:
    with pytest.raises(UserError) as error:
        diff.find_run("by hand")
    assert "2 runs fit 'by hand'" in str(error.value)
    assert all(runs[name][:8] in str(error.value) for name in "cd")
    assert runs["a"][:8] not in str(error.value)


def test_an_unknown_name_is_refused_with_the_runs_that_there_are(runs: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"no run '2026-09-09'[\s\S]*night 2026-01-02"):
        diff.find_run("2026-09-09")


def test_without_names_the_last_two_nights_are_compared_older_first(runs: dict[str, str]) -> None:
    assert [run.info.run_id for run in diff.last_two()] == [runs["a"], runs["b"]]
    assert [run.info.run_id for run in diff.last_two("2026-01-02")] == [runs["a"], runs["b"]]
    with pytest.raises(UserError, match="two finished runs are needed"):
        diff.last_two("2026-01-01")


def test_comparison_prints_settings_data_scores_and_answers_and_writes_the_page(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    diff.compare_runs()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "seed 0 1" in lines
    assert "scenes aaaaaaaa bbbbbbbb" in lines
    assert any(line.startswith("scenes 25.0 75.0 +50 (") for line in lines)  # 5 and 15 of 20
    assert "router.accuracy 0.250 0.750" in lines
    assert "scenes 20 10 0 0" in lines  # 20 questions, 10 better, none worse, none reworded
    page = Path("reports/diff.html").read_text()
    assert "night 2026-01-02 against night 2026-01-01" in page
    assert page.count("data:image/png;base64,") == 3  # the figure and two samples
    assert f"{runs['a']}%22%2C%20%22{runs['b']}" in page  # both in MLflow's own comparison


def test_pictures_of_another_version_of_the_evaluation_data_are_left_out(runs: dict[str, str]) -> None:
    lock = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text(lock.replace("eeeeeeee", "ffffffff"))
    try:
        diff.compare_runs("2026-01-01", "2026-01-02")
    finally:
        Path("dvc.lock").write_text(lock)
    page = Path("reports/diff.html").read_text()
    assert page.count("data:image/png;base64,") == 1  # the figure alone
    assert "Pictures are left out" in page


def test_two_executions_of_the_same_differ_in_no_setting(runs: dict[str, str]) -> None:
    diff.compare_runs(runs["c"], runs["d"])
    page = Path("reports/diff.html").read_text()
    assert "No setting that a result depends on differs." in page
    assert "Both runs had the same data." in page


def test_an_execution_without_kept_answers_is_compared_in_the_rest(runs: dict[str, str]) -> None:
    bare = tracking.open_parent("bare", load_params(), "bare")
    console = Console(record=True, width=120)
    side = diff.read_run(diff.find_run(bare))
    other = diff.read_run(diff.find_run(runs["a"]))
    assert side.evaluation is None
    evaluation = load_params().evaluation
    found = compare_results(other, side, resamples=evaluation.resamples, confidence=0.95, rng=np.random.default_rng(0))
    print_difference(found, 0.95, console)
    text = console.export_text()
    assert "has kept no answers" in text
    assert "seed" in text


def test_where_nothing_ran_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff, "executions", list)
    with pytest.raises(UserError, match="there are 0: run the pipeline again"):
        diff.last_two()
