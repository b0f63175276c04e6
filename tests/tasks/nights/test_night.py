"""A night's lock, name, resumption, commit and page; the whole of one is in tests/test_smoke.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import nightly
from mor.config import Params, load_params
from mor.errors import UserError
from mor.evaluation.gate import Verdict
from tasks.nights import git as versions
from tasks.nights.demo import kill_times
from tasks.nights.journal import CURRENT, NightState, begin, new_name, night_lock
from tasks.project import paths
from tasks.project.dvc import outdated_stages
from tasks.reports.night_page import Night, render_night

ROOT = Path(__file__).parents[3]


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    return subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    git("init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], check=True)
    git("add", "-A")
    git("commit", "--quiet", "-m", "start")
    paths.NIGHTS.mkdir()
    return tmp_path


def test_only_one_night_is_under_way(project: Path) -> None:
    with night_lock(), pytest.raises(UserError, match="another night is under way"), night_lock():
        pass
    with night_lock():  # the lock goes with its holder
        pass


def test_a_night_that_was_cut_off_goes_on_under_its_name(project: Path) -> None:
    night = begin("2026-01-02", "UTC")
    night.work = True
    night.save()
    again = begin("2026-01-03", "UTC")
    assert (again.name, again.work) == ("2026-01-02", True)


def test_what_a_failed_night_left_undone_is_the_next_ones_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(night: NightState, params: Params) -> None:
        night.work = True
        raise UserError("the registry is away")

    monkeypatch.setattr(nightly, "bring_up_to_date", fail)
    monkeypatch.setattr("tasks.nights.record.write_night", lambda *_: None)
    with pytest.raises(UserError, match="the registry is away"):
        nightly.run_night("2026-01-02")
    following = begin("2026-01-03", "UTC")
    assert (following.name, following.work) == ("2026-01-03", True)


def test_a_night_takes_its_steps_in_order_and_leaves_no_journal(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    answers = {"ingest": [], "try": Verdict([])}  # nothing was delivered; a verdict without checks has passed

    def step(name: str, *rest: object, retry: object = None) -> object:
        taken.append(name)
        return answers.get(name)

    monkeypatch.setattr("tasks.nights.steps.step", step)
    monkeypatch.setattr("tasks.nights.steps.stage_step", lambda stage, *rest: taken.append(f"stage {stage}"))
    monkeypatch.setattr("tasks.project.dvc.outdated_stages", lambda: ["align"])
    monkeypatch.setattr("tasks.project.dvc.stage_order", lambda: ["align", "evaluate"])
    monkeypatch.setattr("tasks.nights.record._run_of", lambda *_: "run")
    night = nightly.run_night("2026-01-02")
    made = ["stage align", "stage evaluate", "record", "register", "gate", "try", "promote"]
    assert taken == ["settle", "ingest", "version", *made, "report", "keep", "push"]
    assert (night.ending, night.work, CURRENT.exists()) == ("Promoted", True, False)


def test_nights_of_one_day_are_numbered(project: Path) -> None:
    first = new_name("UTC")
    git("tag", f"night/{first}")
    assert new_name("UTC") == f"{first}.2"


def test_what_a_night_made_is_committed_and_tagged_and_a_second_time_changes_nothing(project: Path) -> None:
    (project / "dvc.lock").write_text("schema: '2.0'\n")
    delivery = paths.ARCHIVE / "documents" / "one"
    delivery.mkdir(parents=True)
    (delivery / "delivery.jsonl").write_text("{}\n")
    versions.keep("2026-01-02", "Promoted", "")
    commit = git("rev-parse", "night/2026-01-02^{commit}")
    assert git("log", "-1", "--format=%s") == "Night 2026-01-02: promoted"
    assert set(git("show", "--name-only", "--format=").splitlines()) == {"data/archive.dvc", "dvc.lock"}
    versions.keep("2026-01-02", "Promoted", "")
    assert git("rev-parse", "night/2026-01-02^{commit}") == commit == git("rev-parse", "HEAD")


def test_data_that_no_stage_makes_is_versioned_and_committed_with_the_night(project: Path) -> None:
    settings = yaml.safe_load((project / "params.yaml").read_text())
    settings["clients"]["radiology"] = {"backbone": "models/zoo/llava"}
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    for client in ("documents", "radiology"):
        paths.client_folder(client).mkdir(parents=True)
        paths.client_preferences(client).write_text("{}\n")
    versions.version_clients(load_params().clients)
    assert [path.name for path in paths.CLIENTS.glob("*.dvc")] == ["radiology.dvc"]  # documents is the fedvqa stage's
    versions.keep("2026-01-02", "Promoted", "")
    assert "data/clients/radiology.dvc" in git("ls-files").splitlines()
    assert not (paths.CLIENTS / ".gitignore").exists()  # it would be one more dependency of the stages


def test_another_clone_pulls_the_archive_and_the_clients_that_no_stage_makes(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True)

    settings = yaml.safe_load((project / "params.yaml").read_text())
    settings["clients"] = {"radiology": {"backbone": "models/zoo/llava"}}
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    kept = [paths.client_preferences("radiology"), paths.ARCHIVE / "radiology" / "one" / "delivery.jsonl"]
    for file in kept:
        file.parent.mkdir(parents=True)
        file.write_text("{}\n")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    dvc("remote", "add", "--quiet", "-d", "storage", str(elsewhere / "storage"))
    git("add", ".dvc/config")
    versions.version_clients(load_params().clients)
    versions.keep("2026-01-02", "Promoted", "")
    assert not {"data/archive.dvc", "data/clients/radiology.dvc"} & set(outdated_stages() or [])
    versions.push("2026-01-02", "")
    git("clone", "--quiet", str(project), str(elsewhere / "clone"))
    monkeypatch.chdir(elsewhere / "clone")
    dvc("pull", "--quiet", "--allow-missing")
    assert all(file.exists() for file in kept)


def test_the_page_shows_what_was_held_and_why_and_escapes_it() -> None:
    delivery = {
        "client": "documents", "name": "one", "state": "held", "rows": 60, "accepted": 60, "duplicates": 0, "quarantined": 0,
        "reasons": ["agreement fell <b>far</b>"],
    }  # fmt: skip
    check = {"name": "kl", "passed": False, "value": 3.0, "low": None, "high": None, "bound": 2.0, "text": "too far"}
    page = render_night(
        Night(
            night="2026-01-02",
            ending="Refused",
            message="",
            deliveries=[delivery],
            stages=[{"stage": "align", "state": "Ran", "seconds": 3.21}],
            verdict={"passed": False, "checks": [check]},
            metrics={},
        ),
        None,
    )
    assert "agreement fell &lt;b&gt;far&lt;/b&gt;" in page
    assert "3.000" in page
    assert "<img" not in page


def test_the_page_says_in_words_only_what_its_numbers_do_not_show() -> None:
    def check(name: str, group: str, passed: bool = True, low: float | None = -0.01) -> dict[str, Any]:
        high = None if low is None else 0.02
        return {"name": name, "passed": passed, "value": 0.0, "low": low, "high": high, "bound": -0.05, "group": group,
                "text": f"all about {name}"}  # fmt: skip

    checks = [
        check("preference.documents", "against the champion"),
        check("accuracy.documents", "against the champion", passed=False),
        check("preference.documents.baseline", "against the baseline"),
        check("kl", "the candidate by itself", low=None),
        check("preference.scenes.baseline", "against the baseline"),
    ]
    verdict = {"passed": False, "checks": checks}
    page = render_night(
        Night(night="n", ending="Refused", message="", deliveries=[], stages=[], verdict=verdict, metrics={}), None
    )
    assert [check["name"] for check in checks if f"all about {check['name']}<" in page] == ["accuracy.documents", "kl"]
    assert page.count(">against the champion<") == 1
    assert page.count(">against the baseline<") == 2  # wherever the group changes
    assert "4 of 5 checks passed" in page


def test_kills_are_spread_over_the_night() -> None:
    import random

    waits = kill_times(4, 100.0, random.Random(0))
    assert len(waits) == 4
    assert all(wait > 0 for wait in waits)
    assert sum(waits) < 100 + 4 * 10


def test_a_night_is_named_by_its_journal_alone(project: Path) -> None:
    begin("2026-01-02", "UTC")
    assert json.loads(CURRENT.read_text()) == {"night": "2026-01-02", "work": False, "failed": False}
