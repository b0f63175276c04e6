"""Deliveries that drift too far are held until a person decides."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from mor.config import Params
from mor.errors import UserError
from tasks.nights.deliveries import archived_deliveries
from tasks.nights.intake import discard, release, take_in_all
from tasks.nights.record import drift_picture
from tasks.project import paths
from tests.tasks.nights.delivering import (
    FOREIGN_WARNINGS,
    INBOX,
    NIGHT,
    drop,
    good,
    load,
    merged_rows,
    only,
    pair,
    swapped,
    tree,
)

pytestmark = FOREIGN_WARNINGS


def test_swapped_preferences_are_held_by_the_last_reward_model(params: Params) -> None:
    drop("poison", swapped(30, 10), range(30, 40))
    before = tree(paths.CLIENTS)
    held = only(take_in_all(params, NIGHT, load))
    assert (held.state, held.decision, held.accepted) == ("held", "stop", 10)
    assert held.reasons[0] == "agreement: the last reward model agrees with 0% of the pairs, it did with 100%"
    assert {finding.name for finding in held.drift} >= {"brightness", "chosen_length", "categories", "agreement"}
    assert tree(paths.CLIENTS) == before
    assert tree(Path("inbox")) == {}
    drop("poison", swapped(30, 10), range(30, 40))
    again = only(take_in_all(params, "2026-01-03", load))
    assert (again.state, again.reasons) == ("empty", [f"the same as came in night {NIGHT}, which is held"])
    assert tree(paths.CLIENTS) == before


def test_good_preferences_pass_the_same_model_and_a_small_delivery_is_not_judged(params: Params) -> None:
    drop("good", good(60, 8), range(60, 68))
    drop("small", swapped(30, 3), range(30, 33))
    good_one, small = take_in_all(params, NIGHT, load)
    assert (good_one.state, {finding.name: finding.decision for finding in good_one.drift}["agreement"]) == (
        "merged",
        "continue",
    )
    assert (small.state, small.drift, small.reasons) == ("merged", [], ["drift was not judged: fewer than 4 rows"])


def test_while_a_reward_model_is_away_its_clients_deliveries_wait(params: Params) -> None:
    paths.DVC_LOCK.write_text(yaml.safe_dump({"stages": {"reward@documents": {}}}))
    drop("poison", swapped(30, 10), range(30, 40))
    told = only(take_in_all(params, NIGHT))
    assert (told.state, "is in dvc.lock but not on disk" in told.reasons[0]) == ("refused", True)
    assert (INBOX / "poison.jsonl").exists()
    paths.DVC_LOCK.unlink()
    assert only(take_in_all(params, NIGHT)).state == "merged"  # a client that never had one


def test_what_a_kill_left_half_copied_is_no_delivery_and_gone_with_the_next_night(params: Params) -> None:
    drop("poison", swapped(30, 10), range(30, 40))
    held = only(take_in_all(params, NIGHT, load))
    draft = held.folder.with_name("poison.partial")
    shutil.copytree(held.folder, draft)
    assert [delivery.folder for delivery in archived_deliveries()] == [held.folder]
    assert discard(held.name).state == "discarded"
    assert take_in_all(params, "2026-01-03", load) == []
    assert not draft.exists()


def test_a_held_delivery_is_released_or_discarded_once(params: Params) -> None:
    drop("one", swapped(30, 10), range(30, 40))
    drop("two", swapped(50, 10), range(50, 60))
    one, two = (delivery.name for delivery in take_in_all(params, NIGHT, load))
    with pytest.raises(UserError, match=f"expected one of: documents/{one}, documents/{two}"):
        release("three", params)
    released = release(f"documents/{one}", params)
    assert (released.state, released.accepted) == ("merged", 10)
    assert [row.id for row in merged_rows()] == [f"n{number}" for number in range(30, 40)]
    assert discard(two).state == "discarded"
    assert len(merged_rows()) == 10
    assert [(d.name, d.state) for d in archived_deliveries()] == [(one, "merged"), (two, "discarded")]
    for name in (one, two):
        with pytest.raises(UserError, match="expected one of: none"):
            release(name, params)


def test_a_released_delivery_is_checked_against_what_came_since(params: Params) -> None:
    drop("held", swapped(30, 10), range(30, 40))
    name = only(take_in_all(params, NIGHT, load)).name
    drop("since", [pair(30, id="since"), pair(31, id="n32", prompt="What number?")], [30, 31])
    take_in_all(params, "2026-01-03", load)
    released = release(name, params)  # 30 is contradicted by now, the id n32 is taken
    assert (released.accepted, released.quarantined) == (8, 2)
    assert [row.id for row in merged_rows()] == ["since", "n32", "n31", *(f"n{number}" for number in range(33, 40))]


def test_the_picture_shows_the_deliveries_that_were_judged(params: Params) -> None:
    assert drift_picture([]) is None
    drop("small", good(30, 2), [30, 31])
    assert drift_picture(take_in_all(params, NIGHT, load)) is None
    drop("poison", swapped(40, 10), range(40, 50))
    shown = drift_picture(take_in_all(params, NIGHT, load))
    assert shown is not None
    assert shown.startswith(b"\x89PNG")
