"""The whole pipeline in a temporary clone, through real ``dvc repro``: two clients, one round, tiny sizes."""

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TINY = {
    "fedvqa": {"pairs": 60, "held_out_pairs": 4, "public": 48, "questions": 12, "error_rate": 0.05},
    "rewards": {"steps": 4, "batch_size": 8},
    "router": {"components": 8, "anchors": 8, "refit_pairs": 12},
    "grpo": {"rounds": 1, "steps": 6, "prompts": 4, "generations": 4, "checkpoint_steps": 2},
    "evaluation": {"resamples": 100, "samples": 2},
    "benchmark": {"averaging": {"rounds": 2, "local_steps": 2, "batch_size": 4, "learning_rate": 0.001, "proximal": 0.01}},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the working tree's files laid over it, and tiny settings with two clients."""
    clone = tmp_path_factory.mktemp("smoke") / "project"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    for section, values in TINY.items():
        params[section].update(values)
    del params["clients"]["medical"]
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(clone, "dvc", "repro")
    return clone


def environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "MOR_", "DVC_"))}
    return kept | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def policy(folder: Path) -> dict[str, str]:
    files = [path for path in (folder / "models/policy").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_result_is_there(project: Path) -> None:
    metrics = json.loads((project / "reports/metrics.json").read_text())
    for model in ("base", "aligned"):
        for measure in ("preference", "accuracy"):
            suites = metrics["models"][model][measure]
            assert {"documents", "scenes", "held_out", "mean", "worst"} <= suites.keys()
            assert all(0 <= s["low"] <= s["value"] <= s["high"] <= 1 for s in suites.values())
    assert metrics["wire"]["scenes"]["up_bytes"] > 0
    assert metrics["settings"]["router"] == "means"
    assert (project / "reports/validation/index.html").exists()
    assert "data:image/png;base64" in (project / "reports/report.html").read_text()


def test_mlflow_holds_one_parent_with_a_child_for_every_stage(project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments() if e.name != "Default"])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    assert "models.aligned.preference.mean" in parents[0].data.metrics
    children = {r.info.run_name: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id}
    assert {"fedvqa", "validate", "reward_documents", "reward_scenes", "router", "align", "align round 1"} <= children.keys()
    curve = client.get_metric_history(children["align round 1"].info.run_id, "kl")
    assert [point.step for point in curve] == [1, 3, 5]  # of 6 steps, those with fresh completions
    assert children["reward_documents"].inputs.dataset_inputs[0].dataset.digest


def test_a_second_run_does_nothing_and_shows_the_table(project: Path) -> None:
    before = (project / "dvc.lock").read_text()
    shown = run(project, sys.executable, "-m", "flows.cli", "run")
    assert (project / "dvc.lock").read_text() == before
    assert "documents" in shown
    assert "reports/report.html" in shown


def test_killed_in_the_middle_of_a_round_it_resumes_to_the_same_policy(project: Path) -> None:
    whole = policy(project)
    shutil.rmtree(project / ".checkpoints/align")
    shutil.rmtree(project / "models/policy")
    stage = subprocess.Popen([sys.executable, "-m", "flows.align"], cwd=project, env=environment(), start_new_session=True)
    deadline = time.monotonic() + 300
    while not (saved := list((project / ".checkpoints/align").glob("trainer-1/checkpoint-*/trainer_state.json"))):
        assert stage.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(stage.pid, signal.SIGKILL)
    stage.wait()
    (project / ".checkpoints/align/trainer-1/checkpoint-7").mkdir()  # as a kill in the middle of a save leaves it
    assert not (project / "models/policy").exists(), "killed too late to show anything"
    assert saved
    run(project, sys.executable, "-m", "flows.align")
    assert policy(project) == whole
    run(project, "dvc", "checkout", "--force")  # its metrics hold other seconds now


def test_a_night_promotes_the_first_candidate_and_the_next_has_nothing_to_do(project: Path) -> None:
    from mlflow import MlflowClient

    run(project, sys.executable, "-m", "flows.cli", "night", "2026-01-01")
    registry = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    night = json.loads((project / "reports/night.json").read_text())
    served = "champion" if night["ending"] == "Promoted" else "candidate"  # 6 steps of GRPO may well fail the gate
    assert registry.get_model_version_by_alias("mor-policy", served).tags["mor.night"] == "2026-01-01"
    assert {stage["state"] for stage in night["stages"]} == {"Unchanged"}
    assert night["verdict"]["checks"]
    assert "night/2026-01-01" in run(project, "git", "tag", "--list")
    if served == "champion":
        run(project, sys.executable, "-m", "flows.cli", "night", "2026-01-02")
        assert "night/2026-01-02" not in run(project, "git", "tag", "--list")


def test_the_benchmark_compares_methods_and_measures_nothing_twice(project: Path) -> None:
    asked = ["--quick", "--methods", "base", "mor_top1", "fedavg_sft_b"]
    shown = run(project, sys.executable, "-m", "flows.cli", "benchmark", *asked)
    assert "FedAvg-SFT (b)" in shown
    results = (project / "benchmarks/results/benchmark.csv").read_text()
    published = {row["key"] for row in csv.DictReader((ROOT / "benchmarks/results/benchmark.csv").read_text().splitlines())}
    rows = [row for row in csv.DictReader(results.splitlines()) if row["key"] not in published]
    assert {row["method"] for row in rows} == {"base", "mor_top1", "fedavg_sft_b"}
    up = {row["method"]: float(row["value"]) for row in rows if (row["measure"], row["suite"]) == ("up_bytes", "scenes")}
    assert up["base"] == 0 < up["mor_top1"] < up["fedavg_sft_b"]
    assert "data:image/png;base64" in (project / "reports/benchmark.html").read_text()
    run(project, sys.executable, "-m", "flows.cli", "benchmark", *asked)
    assert (project / "benchmarks/results/benchmark.csv").read_text() == results
