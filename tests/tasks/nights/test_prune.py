"""Pruning a real project: git with a remote, DVC with a remote, MLflow with its registry, tiny files, five nights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mor.config import Params, load_params, parse_params
from mor.errors import UserError
from tasks.nights import prune
from tasks.nights.git import tagged_nights
from tasks.project import paths
from tasks.tracking import runs as tracking
from tasks.tracking import store

ROOT = Path(__file__).parents[3]
NIGHTS = ["2026-01-01", "2026-01-02", "2026-01-03", "2026-01-03.2", "2026-01-04"]
DVC = [sys.executable, "-m", "dvc"]
CHAMPION, PREVIOUS, LAST = NIGHTS[2], NIGHTS[0], NIGHTS[4]
KEPT_DATA = {f"data of {name}" for name in (PREVIOUS, CHAMPION, LAST, "v1.0", "branch")}
OLD_DATA = {f"data of {name}" for name in (NIGHTS[1], NIGHTS[3], "nobody")}


def run(*command: str, folder: Path | None = None) -> str:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def settings(keep: int) -> Params:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["nightly"] |= {"keep_nights": keep, "git_remote": ""}
    return parse_params(values)


def commit(name: str) -> None:
    """A state of the project with data of its own."""
    Path("data.txt").write_text(f"data of {name}")
    run(*DVC, "add", "--quiet", "data.txt")
    run("git", "add", "-A")
    run("git", "commit", "--quiet", "-m", name)


def register(name: str, run_id: str, tags: dict[str, str]) -> str:
    """A version whose files are artifacts of the night's run; returns its number."""
    client = MlflowClient()
    folder = f"models/{name}"
    client.log_text(run_id, name, f"{folder}/weights")
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    return str(client.create_model_version(name, source, run_id, tags=tags).version)


def make_nights() -> dict[str, str]:
    """Five nights: the third's policy is champion, the first's was before it; the third took the second's reward model."""
    client, runs, rewards = MlflowClient(), {}, ""
    for name in ("mor-policy", "mor-reward-scenes", "somebody-elses"):
        client.create_registered_model(name)
    for number, night in enumerate(NIGHTS, 1):
        commit(night)
        run("git", "tag", "-m", night, f"night/{night}")
        runs[night] = tracking.open_parent(f"night {night}", load_params(), f"night {night}", {"mor.night": night})
        os.environ[tracking.PARENT_VARIABLE] = runs[night]
        with tracking.stage_run("align", {}) as stage:
            stage.artifact(Path("data.txt"))
        tags = {"mor.night": night}
        if number != 3:
            rewards = register("mor-reward-scenes", runs[night], tags)
        policy = register("mor-policy", runs[night], tags | {"mor.rewards": json.dumps({"scenes": rewards})})
        assert policy == str(number)
    del os.environ[tracking.PARENT_VARIABLE]
    client.set_model_version_tag("mor-policy", "3", "mor.previous", "1")
    for alias, number in {"champion": "3", "candidate": "5"}.items():
        client.set_registered_model_alias("mor-policy", alias, number)
    client.set_registered_model_alias("mor-reward-scenes", "champion", "2")
    runs["failed"] = tracking.open_parent("night 2025-12-31", load_params(), "night 2025-12-31", {"mor.night": "2025-12-31"})
    runs["by hand"] = tracking.open_parent("by hand", load_params(), "by hand")
    register("somebody-elses", runs["by hand"], {})
    return runs


def make_project(folder: Path) -> dict[str, str]:
    """The nights' project in the working folder, with data of a tag, of a branch and of no one besides."""
    Path("params.yaml").write_text(yaml.safe_dump(settings(keep=1).model_dump(exclude_none=True)))
    Path(".gitignore").write_text("mlflow.db*\nmlruns/\nreports/\n.nights/\n")
    run("git", "init", "--quiet", "--initial-branch", "main")
    run("git", "config", "user.name", "test")
    run("git", "config", "user.email", "test@localhost")
    run("git", "init", "--quiet", "--bare", str(folder / "origin"))
    run("git", "remote", "add", "origin", str(folder / "origin"))
    run(*DVC, "init", "--quiet")
    run(*DVC, "remote", "add", "--quiet", "--default", "store", str(folder / "remote"))
    commit("nobody")
    commit("v1.0")
    run("git", "tag", "v1.0")
    run("git", "checkout", "--quiet", "-b", "other")
    commit("branch")
    run("git", "checkout", "--quiet", "main")
    run(*DVC, "checkout", "--quiet")
    runs = make_nights()
    Path(".dvc/cache/runs/ab").mkdir(parents=True)
    Path(".dvc/cache/runs/ab/run").write_text("what a stage did")
    run(*DVC, "push", "--quiet", "--all-commits")
    run("git", "push", "--quiet", "origin", "--tags", "main", "other")
    return runs


def held(folder: Path) -> set[str]:
    """The data that a DVC cache or remote holds."""
    return {file.read_text() for file in (folder / "files").rglob("*") if file.is_file()}


def model_files() -> set[str]:
    """Name of the registered model and number of every version whose files are there."""
    found = set()
    for model in MlflowClient().search_registered_models():
        for version in MlflowClient().search_model_versions(f"name = '{model.name}'"):
            if (Path(version.source.removeprefix("file://")) / "weights").exists():
                found.add(f"{model.name} {version.version}")
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """The project, and its MLflow runs by night; later tests see what earlier ones have deleted."""
    folder = tmp_path_factory.mktemp("prune")
    (folder / "project").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "project")
        clear()
        yield folder, make_project(folder)
        clear()


def clear() -> None:
    store.mlflow_client.cache_clear()
    store.experiment.cache_clear()


@pytest.fixture
def runs(made: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return made[1]


@pytest.fixture
def folder(made: tuple[Path, dict[str, str]]) -> Path:
    return made[0]


def test_champion_the_one_before_it_and_the_last_nights_stay(runs: dict[str, str]) -> None:
    plan = prune.make_plan(1)
    assert plan.kept == {PREVIOUS: "previous champion", CHAMPION: "champion", LAST: "candidate"}
    assert plan.nights == [NIGHTS[1], NIGHTS[3]]


def test_a_champions_reward_model_stays_with_the_run_that_it_came_from(runs: dict[str, str]) -> None:
    plan = prune.make_plan(1)
    assert set(plan.versions) == {("mor-policy", "2"), ("mor-policy", "4"), ("mor-reward-scenes", "3")}
    assert runs[NIGHTS[1]] not in plan.runs  # the night goes, its run does not: the champion's reward model is of it
    assert {runs[NIGHTS[3]], runs["failed"]} <= set(plan.runs)
    assert runs["by hand"] not in plan.runs


@pytest.mark.parametrize("keep", [5, 14])
def test_nothing_goes_while_there_are_no_more_nights_than_are_kept(runs: dict[str, str], keep: int) -> None:
    plan = prune.make_plan(keep)
    assert (plan.nights, plan.versions) == ([], [])
    assert set(plan.runs) <= {runs["failed"]}


def test_the_tenth_night_of_a_day_is_later_than_its_second() -> None:
    assert sorted(["2026-01-02.10", "2026-01-02.2", "2026-01-03", "2026-01-02"], key=prune.in_order) == [
        "2026-01-02", "2026-01-02.2", "2026-01-02.10", "2026-01-03",
    ]  # fmt: skip


def test_a_champion_whose_night_has_no_tag_stops_it(runs: dict[str, str]) -> None:
    commit_of = run("git", "rev-parse", f"night/{PREVIOUS}^{{commit}}").strip()
    run("git", "tag", "-d", f"night/{PREVIOUS}")
    try:
        with pytest.raises(UserError, match=f"previous champion is of night {PREVIOUS}, and no tag"):
            prune.make_plan(1)
    finally:
        run("git", "tag", "-m", "x", f"night/{PREVIOUS}", commit_of)


def test_remotes_are_not_pruned_where_no_champion_is_known(runs: dict[str, str]) -> None:
    client = MlflowClient()
    client.delete_registered_model_alias("mor-policy", "champion")
    try:
        assert prune.make_plan(1).kept
        with pytest.raises(UserError, match="no champion"):
            prune.make_plan(1, cloud=True)
    finally:
        client.set_registered_model_alias("mor-policy", "champion", "3")


def test_without_yes_it_says_what_goes_and_deletes_nothing(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    prune.prune_nights(settings(keep=1).nightly)
    said = capsys.readouterr().out
    assert f"night {CHAMPION}  champion" in said
    assert f"tags of nights: night/{NIGHTS[1]}, night/{NIGHTS[3]}\n" in said
    assert "Nothing was deleted" in said
    assert tagged_nights() == NIGHTS
    assert held(Path(".dvc/cache")) == KEPT_DATA | OLD_DATA


def test_a_night_that_was_cut_off_must_end_first(runs: dict[str, str]) -> None:
    cut_off = paths.NIGHTS / "current.json"
    cut_off.parent.mkdir(exist_ok=True)
    cut_off.write_text("{}")
    try:
        with pytest.raises(UserError, match="did not end well"):
            prune.prune_nights(settings(keep=1).nightly, yes=True)
    finally:
        cut_off.unlink()
    assert tagged_nights() == NIGHTS


def test_pruning_deletes_the_rest_even_after_an_interruption(folder: Path, runs: dict[str, str]) -> None:
    """Missing files and runs in the trash are what a killed prune leaves; a needed run in the trash is someone's mistake."""
    plan, client = prune.make_plan(1), MlflowClient()
    shutil.rmtree(plan.files[0].removeprefix("file://"))
    client.delete_run(runs[NIGHTS[3]])
    client.delete_run(runs[CHAMPION])
    again = prune.make_plan(1)
    assert (again.versions, again.files, set(again.runs)) == (plan.versions, plan.files, set(plan.runs))
    prune.carry_out(again)
    assert tagged_nights() == [PREVIOUS, CHAMPION, LAST]
    assert held(Path(".dvc/cache")) == KEPT_DATA
    assert held(folder / "remote") == KEPT_DATA | OLD_DATA
    assert Path(".dvc/cache/runs/ab/run").exists()
    present = {r.info.run_id for r in client.search_runs([store.experiment()], "", ViewType.ALL)}
    assert {runs[name] for name in runs} & present == {runs[n] for n in (*NIGHTS[:3], LAST, "by hand")}
    assert client.get_run(runs[CHAMPION]).info.lifecycle_stage == "active"
    assert not [file for file in Path("mlruns").rglob("*") if runs[NIGHTS[3]] in file.parts and file.is_file()]
    kept = {"mor-policy 1", "mor-policy 3", "mor-policy 5", "mor-reward-scenes 1", "mor-reward-scenes 2", "mor-reward-scenes 4"}
    assert model_files() == kept | {"somebody-elses 1"}
    assert len(list(Path("mlruns").rglob("weights"))) == 7


def test_pruning_again_finds_nothing(runs: dict[str, str]) -> None:
    plan = prune.make_plan(1)
    assert (plan.nights, plan.versions, plan.files, plan.runs) == ([], [], [], [])


def test_pruned_remotes_still_give_every_state_that_stays_to_another_clone(folder: Path, runs: dict[str, str]) -> None:
    prune.carry_out(prune.make_plan(1, cloud=True), "origin", cloud=True)
    assert held(folder / "remote") == KEPT_DATA
    clone = folder / "clone"
    run("git", "clone", "--quiet", str(folder / "origin"), str(clone))
    tags = run("git", "tag", folder=clone).split()
    assert tags == [f"night/{PREVIOUS}", f"night/{CHAMPION}", f"night/{LAST}", "v1.0"]
    for state in (*tags, "other"):
        run("git", "checkout", "--quiet", state, folder=clone)
        run(*DVC, "pull", "--quiet", folder=clone)
        wanted = "branch" if state == "other" else state.removeprefix("night/")
        assert (clone / "data.txt").read_text() == f"data of {wanted}"
