"""What jobs make in their workspaces, and that nothing they share changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.jobs import inflate, make_data
from benchmarks.settings import with_changes
from benchmarks.workspace import share
from mor.config import load_params
from mor.data.schema import Answer, Preference, read_rows, write_rows
from mor.rewards.calibration import Calibration
from tasks.project import paths

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_inflated_scores_are_those_of_this_workspace_alone(tmp_path: Path) -> None:
    honest = tmp_path / "rewards" / "scenes"
    honest.mkdir(parents=True)
    Calibration(0.5, 2.0).save(honest / "calibration.json")
    share(honest, paths.reward_folder("scenes"))
    for _ in range(2):  # a job that was killed does it again
        inflate("scenes", 1000.0, honest)
    assert Calibration.load(paths.reward_folder("scenes") / "calibration.json") == Calibration(0.5, 0.002)
    assert Calibration.load(honest / "calibration.json") == Calibration(0.5, 2.0)


def two_clients() -> None:
    for client in ("one", "two"):
        rows = [
            Preference(id=f"{i}", image=f"images/{i}.png", prompt="?", chosen="good", rejected="bad") for i in range(10)
        ]  # fmt: skip
        write_rows(paths.validated_client(client), rows)
        (paths.client_folder(client) / "images").mkdir(parents=True)
        for row in rows:
            (paths.client_folder(client) / row.image).write_bytes(client.encode())
        write_rows(paths.client_answers(client), [Answer(id=client, answer="a", accepted=["a", "b"])])


def extend(attackers: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """``make_data`` on the data of two clients that is made and validated, with five pairs for each attacker."""
    monkeypatch.setattr("tasks.stages.validate.validate_data", lambda *_: None)
    paths.STAGES.mkdir(parents=True, exist_ok=True)
    paths.stage_metrics("fedvqa").write_text('{"seconds": 1}')
    make_data(with_changes(PARAMS, {"fedvqa.pairs": 5}), {}, attackers, ["one", "two"])


def test_pooled_pairs_are_all_of_them_with_pictures_that_lie_in_the_pools_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    two_clients()
    for _ in range(2):
        extend({}, monkeypatch)
    rows = read_rows(paths.validated_client("pooled"), Preference)
    assert [row.id for row in rows] == [f"{client}/{i}" for client in ("one", "two") for i in range(10)]
    assert {row.chosen for row in rows} == {"good"}
    folder = paths.client_folder("pooled")
    assert {(folder / row.image).read_text() for row in rows} == {"one", "two"}
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    assert not paths.client_answers("pooled").exists()


def test_an_attacker_prefers_what_its_owner_rejects_and_lies_about_styles(monkeypatch: pytest.MonkeyPatch) -> None:
    two_clients()
    extend({"hostile": 1.0}, monkeypatch)
    rows = read_rows(paths.validated_client("hostile"), Preference)
    assert len(rows) == 5
    assert {(row.chosen, row.rejected) for row in rows} == {("bad", "good")}
    assert [(row.id, row.answer, row.accepted) for row in read_rows(paths.client_answers("hostile"), Answer)] == [
        ("one", "b", []), ("two", "b", []),
    ]  # fmt: skip
    assert read_rows(paths.client_answers("one"), Answer)[0].answer == "a"
