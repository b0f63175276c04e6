"""Deliveries are merged once, or set aside with reasons, or refused where they lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mor.config import Params
from mor.data.schema import Preference, read_rows
from mor.fedvqa.write import is_own_data
from tasks.nights.deliveries import archived_deliveries
from tasks.nights.intake import take_in_all
from tasks.project import paths
from tests.tasks.nights.delivering import (
    FOREIGN_WARNINGS,
    INBOX,
    NIGHT,
    PREFERENCES,
    Annotator,
    colour,
    drop,
    good,
    merged_rows,
    none,
    only,
    pair,
    picture,
    tree,
)

pytestmark = FOREIGN_WARNINGS


def test_new_rows_are_merged_archived_as_they_came_and_gone_from_the_inbox(params: Params) -> None:
    drop("monday", good(30, 3), [30, 31, 32])
    came = (INBOX / "monday.jsonl").read_bytes()
    before = PREFERENCES.read_bytes()
    delivery = only(take_in_all(params, NIGHT, none))
    assert (delivery.state, delivery.rows, delivery.accepted, delivery.night) == ("merged", 3, 3, NIGHT)
    assert PREFERENCES.read_bytes().startswith(before)
    assert [row.id for row in merged_rows()] == ["n30", "n31", "n32"]
    for row, number in zip(merged_rows(), (30, 31, 32), strict=True):
        stored = paths.client_folder("documents") / row.image
        assert stored.read_bytes() == (delivery.folder / f"images/{number}.png").read_bytes()
    assert (delivery.folder / "delivery.jsonl").read_bytes() == came
    assert not (delivery.folder / "quarantine.jsonl").exists()
    assert tree(Path("inbox")) == {}


def test_the_benchmark_takes_a_merged_folder_for_somebodys_own(params: Params) -> None:
    assert not is_own_data(paths.client_folder("documents"))
    drop("monday", good(30, 1), [30])
    take_in_all(params, NIGHT, none)
    assert is_own_data(paths.client_folder("documents"))


def test_a_delivery_that_adds_nothing_leaves_the_generated_folder_to_the_benchmark(params: Params) -> None:
    drop("monday", [pair(0, id="a0", image="images/0.png"), "{"], [0])
    before = tree(paths.CLIENTS)
    delivery = only(take_in_all(params, NIGHT, none))
    assert (delivery.state, delivery.duplicates, delivery.quarantined) == ("empty", 1, 1)
    assert tree(paths.CLIENTS) == before


BAD: dict[str, tuple[list[dict[str, Any] | str], str]] = {
    "no JSON": (["{"], "the line is a JSON object in UTF-8"),
    "a missing key": ([{"id": "x", "image": "images/30.png", "prompt": "?"}], '"chosen" has the type string'),
    "a missing picture": ([pair(99)], "image is a file in inbox/documents"),
    "a picture of the test": ([pair(251)], "the picture is in no evaluation set"),
    "a public picture": ([pair(250)], "the picture is not in the public set"),
    "another pair's id": ([pair(30, id="a5")], "the id is not that of another pair, got line 6 of the client's rows"),
    "the opposite of a row": (
        [pair(3, chosen="3", rejected="2")],
        "no other line prefers the opposite, got line 4 of the client",
    ),
    "one id twice": ([pair(30, id="x"), pair(31, id="x")], "id is unique"),
    "the opposite within": ([pair(30), pair(30, id="o", chosen="3", rejected="2")], "no other line prefers the opposite"),
    "the twin of a bad row": ([pair(30, id="a5"), pair(30, id="b")], "the id is not that of another pair"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_rows_are_set_aside_with_their_reason_and_the_good_ones_merged(params: Params, kind: str) -> None:
    rows, claim = BAD[kind]
    drop("monday", [pair(40), *rows], [3, 30, 31, 40, 250, 251])
    delivery = only(take_in_all(params, NIGHT, none))
    assert [row.id for row in merged_rows()] == ["n40"]
    assert (delivery.accepted, delivery.quarantined, delivery.duplicates) == (1, len(rows), 0)
    aside = [json.loads(line) for line in (delivery.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [row["line"] for row in aside] == [2 + i for i in range(len(rows))]
    assert all(any(claim in reason for reason in row["reasons"]) for row in aside)
    assert any(claim in reason for reason in delivery.reasons)


def test_a_row_is_known_by_its_content_whatever_its_id_and_the_name_of_its_picture(params: Params) -> None:
    picture(INBOX / "images/copy.bmp", 3)
    same = [pair(3, id="other", image="images/copy.bmp"), pair(30), pair(30, id="again"), pair(31)]
    drop("monday", same, [30, 31])
    delivery = only(take_in_all(params, NIGHT, none))
    assert (delivery.accepted, delivery.duplicates, delivery.quarantined) == (2, 2, 0)
    assert [row.id for row in merged_rows()] == ["n30", "n31"]


def test_pictures_of_one_name_do_not_overwrite_each_other(params: Params) -> None:
    old = (paths.client_folder("documents") / "images/5.png").read_bytes()
    picture(INBOX / "images/5.png", 105)
    drop("monday", [pair(5)], [])
    take_in_all(params, NIGHT, none)
    picture(INBOX / "images/5.png", 106)
    drop("tuesday", [pair(5, id="later")], [])
    take_in_all(params, "2026-01-03", none)
    assert (paths.client_folder("documents") / "images/5.png").read_bytes() == old
    colours = [Image.open(paths.client_folder("documents") / row.image).getpixel((0, 0))[0] for row in merged_rows()]  # type: ignore[index]
    assert colours == [colour(105)[0], colour(106)[0]]


def test_the_same_delivery_twice_is_used_once_also_under_another_name(params: Params) -> None:
    for night, name in (("2026-01-02", "monday"), ("2026-01-03", "monday"), ("2026-01-04", "copy")):
        drop(name, good(30, 2), [30, 31])
        told = only(take_in_all(params, night, none))
        assert told.state == ("merged" if night == "2026-01-02" else "empty")
    assert told.reasons == ["the same as came in night 2026-01-02, which is merged"]
    assert [row.id for row in merged_rows()] == ["n30", "n31"]
    assert len(archived_deliveries()) == 1
    assert tree(Path("inbox")) == {}
    assert only(take_in_all(params, "2026-01-02", none)).state == "merged"  # what that night brought, told again


def test_the_same_rows_with_other_pictures_are_another_delivery(params: Params) -> None:
    drop("monday", [pair(30)], [30])
    take_in_all(params, NIGHT, none)
    drop("monday", [pair(30)], [])
    picture(INBOX / "images/30.png", 31)
    told = only(take_in_all(params, "2026-01-03", none))
    assert told.quarantined == 1
    assert told.reasons[0].startswith("1 row: expected that the id is not that of another pair")
    assert len(archived_deliveries()) == 2


def test_a_new_delivery_under_the_name_of_one_that_was_cut_off_is_taken_in_too(params: Params) -> None:
    drop("monday", [pair(30)], [30])
    first = only(take_in_all(params, NIGHT, none))
    first.saved_with(finished=False)  # as a kill before the inbox is cleared leaves it
    drop("monday", [pair(31)], [31])
    assert [delivery.accepted for delivery in take_in_all(params, NIGHT, none)] == [1, 1]
    assert [row.id for row in merged_rows()] == ["n30", "n31"]


def test_a_picture_that_another_waiting_delivery_names_stays_in_the_inbox(params: Params) -> None:
    drop("a", [pair(30)], [30])
    drop("b", [pair(30, id="b", prompt="What number?")], [])
    (INBOX / "b.jsonl").rename(INBOX / "b.partial")  # still being written
    take_in_all(params, NIGHT, none)
    assert set(tree(Path("inbox"))) == {"inbox/documents/b.partial", "inbox/documents/images/30.png"}
    (INBOX / "b.partial").rename(INBOX / "b.jsonl")
    assert [delivery.state for delivery in take_in_all(params, NIGHT, none)] == ["merged", "merged"]
    assert tree(Path("inbox")) == {}


REFUSED: dict[str, tuple[str, Callable[[], object], str]] = {
    "an unknown client": ("radiolgy", lambda: None, "lies in no client's folder; move it to inbox/<client>/, one of documents"),
    "an empty file": ("documents", lambda: (INBOX / "monday.jsonl").write_text(""), "the file is empty"),
    "no data yet": ("documents", lambda: shutil.rmtree(paths.client_folder("documents")), "is not there to be added to"),
    "no evaluation set": ("documents", lambda: shutil.rmtree(paths.EVAL), "no evaluation suite"),
    "a folder": (
        "documents",
        lambda: ((INBOX / "monday.jsonl").unlink(), (INBOX / "monday.jsonl").mkdir()),
        "cannot be copied",
    ),
    "an own name": (
        "documents",
        lambda: (INBOX / "monday.jsonl").write_text(json.dumps(pair(1, image="delivery.json"))),
        "a picture is named delivery.json",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_taken_in_stays_in_the_inbox_and_keeps_nobody_waiting(params: Params, kind: str) -> None:
    client, spoil, said = REFUSED[kind]
    drop("monday", [pair(30)], [30], Path("inbox") / client)
    spoil()
    before = tree(Path("inbox"))
    told = only(take_in_all(params, NIGHT, none))
    assert told.state == "refused"
    assert said in told.reasons[0]
    assert tree(Path("inbox")) == before
    assert archived_deliveries() == []
    assert not list(paths.ARCHIVE.glob("*/*.partial"))


def test_an_unforeseen_error_with_one_delivery_keeps_nobody_waiting(params: Params) -> None:
    def broken(client: str) -> Annotator:
        raise ZeroDivisionError("no scores")

    drop("monday", good(30, 10), range(30, 40))
    drop("monday", good(30, 2), [30, 31], Path("inbox/radiology"))
    told = {delivery.client: delivery for delivery in take_in_all(params, NIGHT, broken)}
    assert (told["radiology"].state, told["documents"].state) == ("merged", "refused")
    assert (
        told["documents"].reasons[0].startswith("ZeroDivisionError at tests/tasks/nights/test_intake.py:")
    )  # the text may hold a row
    assert (INBOX / "monday.jsonl").exists()


def test_a_client_whose_data_comes_by_deliveries_alone_starts_with_the_first(params: Params) -> None:
    drop("monday", good(30, 2), [30, 31], Path("inbox/radiology"))
    drop("monday", good(30, 2), [30, 31], Path("inbox/stray"))
    assert [(d.client, d.state) for d in take_in_all(params, NIGHT, none)] == [("radiology", "merged"), ("stray", "refused")]
    assert [row.id for row in read_rows(paths.client_preferences("radiology"), Preference)] == ["n30", "n31"]
