"""What MLflow holds after a pipeline ran, in a real store in a temporary folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from mor.config import load_params
from mor.files import digest
from tasks.tracking import runs as tracking
from tasks.tracking import store

ROOT = Path(__file__).parents[3]
LOCK = """
schema: '2.0'
stages:
  validate:
    cmd: x
    params: {params.yaml: {validation: {on_bad_rows: fail}}}
    deps: [{path: mor/data/schema.py, md5: 99999999}, {path: data/eval, md5: 0a1b2c3d4e5f.dir}]
  reward@documents:
    cmd: x
    params: {params.yaml: {seed: 0, rewards: {beta: 0.2}}}
    deps: [{path: data/clients/documents, md5: 5e6f7a8b9c0d.dir}]
  reward@removed: {cmd: x, params: {params.yaml: {seed: 0}}, deps: [{path: data/clients/removed, md5: 11111111}]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests here: making its tables takes seconds."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(autouse=True)
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    shutil.rmtree("reports", ignore_errors=True)
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / "dvc.lock").write_text(LOCK)
    store.mlflow_client.cache_clear()
    store.experiment.cache_clear()
    yield folder
    store.mlflow_client.cache_clear()
    store.experiment.cache_clear()


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> str:
    made = tracking.open_parent("test", load_params())
    monkeypatch.setenv(tracking.PARENT_VARIABLE, made)
    return made


def children(parent: str) -> dict[str, Run]:
    found = MlflowClient().search_runs(
        [MlflowClient().get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    return {run.info.run_name: run for run in found}


def test_stage_file_holds_the_last_value_of_every_metric_and_its_seconds(parent: str) -> None:
    with tracking.stage_run("reward@documents", {}) as run:
        for step, loss in enumerate([3.0, 2.0, 1.0]):
            run.metrics({"loss": loss}, step=step)
        run.metrics({"undefined": float("nan")})
    written = json.loads(Path("reports/stages/reward_documents.json").read_text())
    seconds = written.pop("seconds")
    assert written == {"loss": 1.0, "undefined": None}
    assert 0 <= seconds < 60
    history = MlflowClient().get_metric_history(run.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(0, 3.0), (1, 2.0), (2, 1.0)]


def test_more_metrics_than_one_batch_holds_all_arrive(parent: str) -> None:
    with tracking.stage_run("many", {}) as run:
        run.metrics({f"m{number}": number for number in range(1500)})
    assert len(MlflowClient().get_run(run.run_id).data.metrics) == 1501  # and seconds


def test_stages_and_rounds_are_one_level_below_the_parent(parent: str) -> None:
    with (
        tracking.stage_run("align", {"seed": 0, "grpo": load_params().grpo}) as run,
        run.child("align round 1", {"round": 1}) as round_run,
    ):
        round_run.metrics({"reward": 0.5}, step=7)
        run.metrics({"kl": 0.1})
    found = children(parent)
    assert set(found) == {"align", "align round 1"}
    assert found["align round 1"].data.metrics == {"reward": 0.5}
    assert found["align"].data.params["grpo.lora.rank"] == str(load_params().grpo.lora.rank)
    assert "reward" not in json.loads(Path("reports/stages/align.json").read_text())
    assert {run.info.status for run in found.values()} == {"FINISHED"}


def test_runs_tell_commit_dirt_lock_seed_and_router(parent: str) -> None:
    with tracking.stage_run("validate", {}):
        pass
    for run in (MlflowClient().get_run(parent), children(parent)["validate"]):
        tags = run.data.tags
        assert {"mlflow.source.git.commit", "mor.dirty", "mor.dvc_lock"} <= set(tags)
        assert tags["mor.seed"] == "0"
        assert tags["mor.router"] == load_params().router.kind
    assert MlflowClient().get_run(parent).info.run_name == f"{load_params().router.kind} seed 0"


def test_failed_stage_is_marked_keeps_its_metrics_and_writes_no_stage_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "execution_name", lambda: "failing")
    with pytest.raises(ValueError, match="boom"), tracking.stage_run("router", {}) as run:  # noqa: PT012
        run.metrics({"loss": 2.0})
        raise ValueError("boom")
    stage, above = MlflowClient().get_run(run.run_id), MlflowClient().get_run(run.parent_id)
    assert (stage.info.status, above.info.status) == ("FAILED", "FAILED")
    assert stage.data.metrics == {"loss": 2.0}
    assert stage.data.tags["mor.error"].startswith(
        "ValueError at tests/tasks/tracking/test_runs.py:"
    )  # its text may hold a row
    assert not Path("reports/stages/router.json").exists()


def test_stages_of_one_execution_share_its_parent_and_another_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = []
    for execution in ("7@1.00", "7@1.00", "7@2.00"):  # the same process number at another time is another process
        monkeypatch.setattr(tracking, "execution_name", lambda execution=execution: execution)
        with tracking.stage_run("validate", {}) as run:
            parents.append(run.parent_id)
    assert parents[0] == parents[1] != parents[2]
    assert MlflowClient().get_run(parents[0]).info.status == "FINISHED"


def test_execution_is_the_dvc_process_above(tmp_path: Path) -> None:
    ask = "from tasks.tracking.runs import execution_name; print(execution_name())"
    code = f"import os, subprocess, sys; print(os.getpid(), flush=True); subprocess.run([sys.executable, '-c', {ask!r}])"
    (tmp_path / "dvc").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.check_output([sys.executable, str(tmp_path / "dvc"), "repro"], text=True, env=environment).split()
    assert said[1].split("@")[0] == said[0]


def test_skipped_stages_of_present_clients_get_one_cached_run_each(parent: str) -> None:
    with tracking.stage_run("validate", {}):
        pass
    Path("reports/stages/reward_documents.json").write_text('{"reward.documents.accuracy": 0.75, "lost": null, "seconds": 3}')
    mean = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {"models": {"base": {"accuracy": {"mean": mean}}}, "settings": {"router": "uniform"}}
    Path("reports/metrics.json").write_text(json.dumps(metrics))
    assert tracking.reconcile(parent, load_params()) == ["reward@documents"]
    assert tracking.reconcile(parent, load_params()) == []
    found = children(parent)
    assert set(found) == {"validate", "reward_documents"}
    skipped = found["reward_documents"].data
    assert skipped.tags["mor.cached"] == "true"
    assert skipped.metrics == {"reward.documents.accuracy": 0.75, "seconds": 3.0}
    assert skipped.params == {"seed": "0", "rewards.beta": "0.2"}
    assert "mor.cached" not in found["validate"].data.tags
    name = "models.base.accuracy.mean"
    assert MlflowClient().get_run(parent).data.metrics == {name: 0.5, f"{name}.low": 0.4, f"{name}.high": 0.6}
    assert len(MlflowClient().get_metric_history(parent, name)) == 1


def test_a_stage_that_was_killed_before_does_not_count_as_run(parent: str) -> None:
    client = MlflowClient()
    experiment = client.get_run(parent).info.experiment_id
    for name, status in {"validate": "FAILED", "reward_documents": "RUNNING"}.items():
        tags = {"mlflow.parentRunId": parent, "mor.stage": name, "mor.process": "0@0.00"}
        client.update_run(client.create_run(experiment, tags=tags, run_name=name).info.run_id, status=status)
    assert set(tracking.reconcile(parent, load_params())) == {"validate", "reward@documents"}


def test_parent_keeps_the_data_versions_of_present_clients_and_the_results(parent: str) -> None:
    Path("reports").mkdir()
    Path("reports/metrics.json").write_text('{"router": {"accuracy": 1.0}}')
    Path("reports/evaluation.json").write_text("{}")
    tracking.reconcile(parent, load_params())
    tracking.reconcile(parent, load_params())
    params = MlflowClient().get_run(parent).data.params
    assert {k: v for k, v in params.items() if k.startswith("data.")} == {"data.documents": "5e6f7a8b", "data.eval": "0a1b2c3d"}
    kept = {file.path for file in MlflowClient().list_artifacts(parent, "results")}
    assert kept == {f"results/{name}" for name in ("metrics.json", "evaluation.json", "params.yaml", "dvc.lock")}


def test_parent_holds_the_settings_that_results_depend_on_and_no_others(parent: str) -> None:
    params = MlflowClient().get_run(parent).data.params
    assert {params["seed"], params["grpo.lora.rank"], params["clients.scenes.backbone"]} == {"0", "16", "models/zoo/gemma3"}
    noise = {
        "threads",
        "zoo.seed",
        "nightly.cron",
        "benchmark.seeds",
        "gate.margin",
        "clients.scenes.url",
        "evaluation.samples",
    }
    assert not noise & set(params)
    assert "None" not in params.values()


def test_a_night_is_found_by_its_execution_and_bears_its_tags() -> None:
    assert tracking.find_parent("night 2026-01-02") is None
    made = tracking.open_parent("night 2026-01-02", load_params(), "night 2026-01-02", {"mor.night": "2026-01-02"})
    run = MlflowClient().get_run(tracking.find_parent("night 2026-01-02"))
    assert run.info.run_id == made
    assert (run.info.run_name, run.data.tags["mor.night"]) == ("night 2026-01-02", "2026-01-02")


def test_a_stage_is_shown_by_its_newest_run_and_not_by_its_rounds(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.stage_values(parent, "reward@scenes") == {}
    for loss in (2.0, 1.0):
        time.sleep(0.002)  # MLflow tells times apart by milliseconds
        with tracking.stage_run("reward@scenes", {}) as run, run.child("reward_scenes round 1") as later:
            run.metrics({"loss": loss})
            later.metrics({"loss": 9.0})
    assert tracking.stage_values(parent, "reward@scenes")["loss"] == 1.0
    monkeypatch.setenv("MOR_MLFLOW_UI", "http://mlflow.example:1234/")
    experiment = MlflowClient().get_run(parent).info.experiment_id
    page = f"http://mlflow.example:1234/#/experiments/{experiment}/runs/"
    assert tracking.stage_address(parent, "reward@scenes") == page + run.run_id
    assert tracking.stage_address(parent, "align") == page + parent


def test_closing_an_execution_closes_the_runs_of_killed_stages(parent: str) -> None:
    client = MlflowClient()
    tags = {"mlflow.parentRunId": parent, "mor.process": "0@0.00"}
    left = client.create_run(client.get_run(parent).info.experiment_id, tags=tags).info.run_id
    tracking.close_parent(parent, "FAILED")
    assert client.get_run(left).info.status == "KILLED"
    assert client.get_run(parent).info.status == "FAILED"


def test_dataset_is_recorded_with_its_digest_and_rows(parent: str) -> None:
    file = Path("rows.jsonl")
    file.write_text('{"id": "1"}\n')
    with tracking.stage_run("reward@scenes", {}) as run:
        run.dataset("scenes.preferences", file, 1, "training")
    (entry,) = MlflowClient().get_run(run.run_id).inputs.dataset_inputs
    assert entry.dataset.digest == digest(file)
    assert json.loads(entry.dataset.profile) == {"num_rows": 1}
    assert {tag.key: tag.value for tag in entry.tags} == {"mlflow.data.context": "training"}


def test_artifacts_keep_a_folder_under_its_own_name(parent: str) -> None:
    Path("plots").mkdir(exist_ok=True)
    Path("plots/a.txt").write_text("a")
    with tracking.stage_run("report", {}) as run:
        run.artifact(Path("plots"))
        run.artifact(Path("params.yaml"), "settings")
    kept = {file.path for top in ("plots", "settings") for file in MlflowClient().list_artifacts(run.run_id, top)}
    assert kept == {"plots/a.txt", "settings/params.yaml"}


def test_runs_lie_where_a_bare_mlflow_ui_looks(folder: Path, parent: str) -> None:
    with tracking.stage_run("report", {}) as run:
        run.artifact(Path("params.yaml"))
    assert (folder / "mlflow.db").exists()
    assert [file.name for file in (folder / "mlruns").rglob("params.yaml") if run.run_id in file.parts] == ["params.yaml"]
