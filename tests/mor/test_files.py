"""Files and folders that are whole or not there, and digests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mor import files


class Killed(BaseException):
    """Nothing catches it."""


def test_a_file_is_replaced_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file.txt"
    for content in ("first, a longer one: Größe\n", b"second\r\n"):
        files.write_whole(file, content)
        assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
        assert list(file.parent.iterdir()) == [file]


def test_a_folder_that_is_being_filled_does_not_touch_the_one_in_its_place(tmp_path: Path) -> None:
    final = tmp_path / "folder"
    with files.fresh_folder(final) as draft:
        (draft / "a").write_text("1")
    with pytest.raises(Killed), files.fresh_folder(final) as draft:  # noqa: PT012
        (draft / "b").write_text("2")
        raise Killed
    assert [path.name for path in final.iterdir()] == ["a"]
    with files.fresh_folder(final) as draft:
        assert list(draft.iterdir()) == []
        (draft / "c").write_text("3")
    assert [path.name for path in final.iterdir()] == ["c"]
    assert list(tmp_path.iterdir()) == [final]


def test_digest_of_a_folder_follows_content_and_names_but_not_place(tmp_path: Path) -> None:
    for name, content in {"a/x": "1", "b/x": "1", "c/x": "2", "d/y": "1"}.items():
        file = tmp_path / name
        file.parent.mkdir()
        file.write_text(content)
    a, b, c, d = (files.digest(tmp_path / name) for name in "abcd")
    assert a == b
    assert len({a, c, d}) == 3


def test_a_json_file_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert files.read_json(tmp_path / "none.json") == {}
