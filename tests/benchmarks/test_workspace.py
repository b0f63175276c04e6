from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.workspace import Workspace, share, workspace_folder
from mor.config import load_params

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source" / "images").mkdir(parents=True)
    (tmp_path / "source" / "images" / "a.png").write_bytes(b"picture")
    (tmp_path / "source" / "rows.jsonl").write_bytes(b"{}\n")
    return tmp_path / "source"


def test_shared_files_are_one_file_in_two_places_and_no_links_that_leave(source: Path, tmp_path: Path) -> None:
    share(source, tmp_path / "new" / "target")
    assert files(tmp_path / "new" / "target") == files(source)
    assert (tmp_path / "new" / "target" / "rows.jsonl").samefile(source / "rows.jsonl")
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_symlink()]


def test_where_there_can_be_no_hard_link_files_are_copied(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(os, "link", refuse)
    share(source, tmp_path / "target")
    assert files(tmp_path / "target") == files(source)
    assert not (tmp_path / "target" / "rows.jsonl").samefile(source / "rows.jsonl")


def test_a_symbolic_link_in_what_is_shared_becomes_the_file_itself(source: Path, tmp_path: Path) -> None:
    (source / "link.jsonl").symlink_to("rows.jsonl")
    share(source, tmp_path / "elsewhere" / "target")
    assert not (tmp_path / "elsewhere" / "target" / "link.jsonl").is_symlink()
    assert (tmp_path / "elsewhere" / "target" / "link.jsonl").read_bytes() == b"{}\n"


def test_what_a_kill_left_half_shared_is_shared_anew(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".target.partial" / "images").mkdir(parents=True)
    share(source, tmp_path / "target")
    assert files(tmp_path / "target") == files(source)
    assert not (tmp_path / ".target.partial").exists()


def test_a_workspace_is_kept_until_its_key_changes(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared = {Path("data"): source, Path("models/weak"): tmp_path / "not made"}
    workspace = Workspace(workspace_folder("a/b"), PARAMS, "key", shared)
    workspace.prepare()
    assert load_params(workspace.folder / "params.yaml") == PARAMS
    assert not (workspace.folder / "models").exists()
    (workspace.folder / "checkpoint").touch()
    workspace.prepare()
    assert (workspace.folder / "checkpoint").exists()
    replace(workspace, key="other").prepare()
    assert not (workspace.folder / "checkpoint").exists()
    assert files(workspace.folder / "data") == files(source)
