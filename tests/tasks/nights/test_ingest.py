"""Deliveries are merged once, set aside with reasons, held when they drift, and survive a kill at any moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mor.config import Params, UserError, load_params
from mor.data.schema import Preference, read_rows, write_rows
from mor.fedvqa.write import MARKER, is_own_data
from tasks.nights import ingest
from tasks.nights.ingest import Delivery
from tasks.project import paths

pytestmark = [  # Great Expectations and what it imports warn about their own futures; so does os.fork
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
SHIPPED = Path(__file__).parents[3] / "params.yaml"
HAD = 24  # rows of the client
INBOX = Path("inbox/documents")
PREFERENCES = paths.client_preferences("documents")
NIGHT = "2026-01-02"


def picture(path: Path, number: int) -> None:
    """A picture that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour(number)).save(path)


def colour(number: int) -> tuple[int, int, int]:
    """Neighbours are as bright as any others, so that a delivery of them does not drift; 37 is odd: no two are the same."""
    return number * 37 % 256, number * 101 % 256, number * 197 % 256


def pair(number: int, **changes: Any) -> dict[str, Any]:
    row = {"id": f"n{number}", "image": f"images/{number}.png", "prompt": "What is it?", "chosen": "2", "rejected": "3"}
    return row | changes


def drop(name: str, rows: Sequence[dict[str, Any] | str], pictures: Sequence[int], inbox: Path = INBOX) -> None:
    for number in pictures:
        picture(inbox / f"images/{number}.png", number)
    inbox.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (inbox / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def good(first: int, count: int) -> list[dict[str, Any]]:
    return [pair(number) for number in range(first, first + count)]


class Annotator:
    """A reward model that prefers "2" to anything else."""

    fingerprint = "annotator"

    def score(self, prompts: Sequence[str], images: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        return [float(text == "2") for text in completions]


def load(client: str) -> Annotator:
    return Annotator()


def none(client: str) -> None:
    return None


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A project with a generated client, two public prompts and an evaluation set, in the current folder."""
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(SHIPPED.read_text())
    settings["drift"] |= {"least_rows": 4, "shape_stop": 0.9}
    settings["rewards"] |= {"validation_share": 0.5}
    settings["validation"]["image_formats"] = ["PNG", "JPEG", "BMP"]
    settings["clients"]["radiology"] = {"backbone": "models/zoo/llava"}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    for number in range(HAD):
        picture(paths.client_folder("documents") / f"images/{number}.png", number)
    rows = [Preference.model_validate(pair(number, id=f"a{number}")) for number in range(HAD)]
    write_rows(PREFERENCES, rows)
    write_rows(paths.validated_client("documents"), rows)
    (paths.client_folder("documents") / MARKER).touch()
    picture(paths.PUBLIC / "images/p.png", 250)
    picture(paths.EVAL / "images/e.png", 251)
    paths.PUBLIC_PROMPTS.write_text(json.dumps({"id": "p", "image": "images/p.png", "prompt": "What is it?"}))
    question = {"id": "e", "image": "images/e.png", "prompt": "What is it?", "answer": "2", "category": "c"}
    paths.eval_suite("documents").write_text(json.dumps(question))
    return load_params(Path("params.yaml"))


def merged_rows() -> list[Preference]:
    """What was added to the client's rows."""
    return read_rows(PREFERENCES, Preference)[HAD:]


def tree(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def only(found: list[Delivery]) -> Delivery:
    (delivery,) = found
    return delivery


def test_new_rows_are_merged_archived_as_they_came_and_gone_from_the_inbox(params: Params) -> None:
    drop("monday", good(30, 3), [30, 31, 32])
    came = (INBOX / "monday.jsonl").read_bytes()
    before = PREFERENCES.read_bytes()
    delivery = only(ingest.ingest(params, NIGHT, none))
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
    ingest.ingest(params, NIGHT, none)
    assert is_own_data(paths.client_folder("documents"))


def test_a_delivery_that_adds_nothing_leaves_the_generated_folder_to_the_benchmark(params: Params) -> None:
    drop("monday", [pair(0, id="a0", image="images/0.png"), "{"], [0])
    before = tree(paths.CLIENTS)
    delivery = only(ingest.ingest(params, NIGHT, none))
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
    delivery = only(ingest.ingest(params, NIGHT, none))
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
    delivery = only(ingest.ingest(params, NIGHT, none))
    assert (delivery.accepted, delivery.duplicates, delivery.quarantined) == (2, 2, 0)
    assert [row.id for row in merged_rows()] == ["n30", "n31"]


def test_pictures_of_one_name_do_not_overwrite_each_other(params: Params) -> None:
    old = (paths.client_folder("documents") / "images/5.png").read_bytes()
    picture(INBOX / "images/5.png", 105)
    drop("monday", [pair(5)], [])
    ingest.ingest(params, NIGHT, none)
    picture(INBOX / "images/5.png", 106)
    drop("tuesday", [pair(5, id="later")], [])
    ingest.ingest(params, "2026-01-03", none)
    assert (paths.client_folder("documents") / "images/5.png").read_bytes() == old
    colours = [Image.open(paths.client_folder("documents") / row.image).getpixel((0, 0))[0] for row in merged_rows()]  # type: ignore[index]
    assert colours == [colour(105)[0], colour(106)[0]]


def test_the_same_delivery_twice_is_used_once_also_under_another_name(params: Params) -> None:
    for night, name in (("2026-01-02", "monday"), ("2026-01-03", "monday"), ("2026-01-04", "copy")):
        drop(name, good(30, 2), [30, 31])
        told = only(ingest.ingest(params, night, none))
        assert told.state == ("merged" if night == "2026-01-02" else "empty")
    assert told.reasons == ["the same as came in night 2026-01-02, which is merged"]
    assert [row.id for row in merged_rows()] == ["n30", "n31"]
    assert len(ingest.deliveries()) == 1
    assert tree(Path("inbox")) == {}
    assert only(ingest.ingest(params, "2026-01-02", none)).state == "merged"  # what that night brought, told again


def test_the_same_rows_with_other_pictures_are_another_delivery(params: Params) -> None:
    drop("monday", [pair(30)], [30])
    ingest.ingest(params, NIGHT, none)
    drop("monday", [pair(30)], [])
    picture(INBOX / "images/30.png", 31)
    told = only(ingest.ingest(params, "2026-01-03", none))
    assert told.quarantined == 1
    assert told.reasons[0].startswith("1 row: expected that the id is not that of another pair")
    assert len(ingest.deliveries()) == 2


def test_a_new_delivery_under_the_name_of_one_that_was_cut_off_is_taken_in_too(params: Params) -> None:
    drop("monday", [pair(30)], [30])
    first = only(ingest.ingest(params, NIGHT, none))
    first.model_copy(update={"finished": False}).save()  # as a kill before the inbox is cleared leaves it
    drop("monday", [pair(31)], [31])
    assert [delivery.accepted for delivery in ingest.ingest(params, NIGHT, none)] == [1, 1]
    assert [row.id for row in merged_rows()] == ["n30", "n31"]


def test_a_picture_that_another_waiting_delivery_names_stays_in_the_inbox(params: Params) -> None:
    drop("a", [pair(30)], [30])
    drop("b", [pair(30, id="b", prompt="What number?")], [])
    (INBOX / "b.jsonl").rename(INBOX / "b.partial")  # still being written
    ingest.ingest(params, NIGHT, none)
    assert set(tree(Path("inbox"))) == {"inbox/documents/b.partial", "inbox/documents/images/30.png"}
    (INBOX / "b.partial").rename(INBOX / "b.jsonl")
    assert [delivery.state for delivery in ingest.ingest(params, NIGHT, none)] == ["merged", "merged"]
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
    told = only(ingest.ingest(params, NIGHT, none))
    assert told.state == "refused"
    assert said in told.reasons[0]
    assert tree(Path("inbox")) == before
    assert ingest.deliveries() == []
    assert not list(paths.ARCHIVE.glob("*/*.partial"))


def test_an_unforeseen_error_with_one_delivery_keeps_nobody_waiting(params: Params) -> None:
    def broken(client: str) -> Annotator:
        raise ZeroDivisionError("no scores")

    drop("monday", good(30, 10), range(30, 40))
    drop("monday", good(30, 2), [30, 31], Path("inbox/radiology"))
    told = {delivery.client: delivery for delivery in ingest.ingest(params, NIGHT, broken)}
    assert (told["radiology"].state, told["documents"].state) == ("merged", "refused")
    assert (
        told["documents"].reasons[0].startswith("ZeroDivisionError at tests/tasks/nights/test_ingest.py:")
    )  # the text may hold a row
    assert (INBOX / "monday.jsonl").exists()


def test_a_client_whose_data_comes_by_deliveries_alone_starts_with_the_first(params: Params) -> None:
    drop("monday", good(30, 2), [30, 31], Path("inbox/radiology"))
    drop("monday", good(30, 2), [30, 31], Path("inbox/stray"))
    assert [(d.client, d.state) for d in ingest.ingest(params, NIGHT, none)] == [("radiology", "merged"), ("stray", "refused")]
    assert [row.id for row in read_rows(paths.client_preferences("radiology"), Preference)] == ["n30", "n31"]


def swapped(first: int, count: int) -> list[dict[str, Any]]:
    return [pair(number, chosen="3", rejected="2") for number in range(first, first + count)]


def test_swapped_preferences_are_held_by_the_last_reward_model(params: Params) -> None:
    drop("poison", swapped(30, 10), range(30, 40))
    before = tree(paths.CLIENTS)
    held = only(ingest.ingest(params, NIGHT, load))
    assert (held.state, held.decision, held.accepted) == ("held", "stop", 10)
    assert held.reasons[0] == "agreement: the last reward model agrees with 0% of the pairs, it did with 100%"
    assert {finding.name for finding in held.drift} >= {"brightness", "chosen_length", "categories", "agreement"}
    assert tree(paths.CLIENTS) == before
    assert tree(Path("inbox")) == {}
    drop("poison", swapped(30, 10), range(30, 40))
    again = only(ingest.ingest(params, "2026-01-03", load))
    assert (again.state, again.reasons) == ("empty", [f"the same as came in night {NIGHT}, which is held"])
    assert tree(paths.CLIENTS) == before


def test_good_preferences_pass_the_same_model_and_a_small_delivery_is_not_judged(params: Params) -> None:
    drop("good", good(60, 8), range(60, 68))
    drop("small", swapped(30, 3), range(30, 33))
    good_one, small = ingest.ingest(params, NIGHT, load)
    assert (good_one.state, {finding.name: finding.decision for finding in good_one.drift}["agreement"]) == (
        "merged",
        "continue",
    )
    assert (small.state, small.drift, small.reasons) == ("merged", [], ["drift was not judged: fewer than 4 rows"])


def test_while_a_reward_model_is_away_its_clients_deliveries_wait(params: Params) -> None:
    paths.DVC_LOCK.write_text(yaml.safe_dump({"stages": {"reward@documents": {}}}))
    drop("poison", swapped(30, 10), range(30, 40))
    told = only(ingest.ingest(params, NIGHT))
    assert (told.state, "is in dvc.lock but not on disk" in told.reasons[0]) == ("refused", True)
    assert (INBOX / "poison.jsonl").exists()
    paths.DVC_LOCK.unlink()
    assert only(ingest.ingest(params, NIGHT)).state == "merged"  # a client that never had one


def test_what_a_kill_left_half_copied_is_no_delivery_and_gone_with_the_next_night(params: Params) -> None:
    drop("poison", swapped(30, 10), range(30, 40))
    held = only(ingest.ingest(params, NIGHT, load))
    draft = held.folder.with_name("poison.partial")
    shutil.copytree(held.folder, draft)
    assert [delivery.folder for delivery in ingest.deliveries()] == [held.folder]
    assert ingest.discard(held.name).state == "discarded"
    assert ingest.ingest(params, "2026-01-03", load) == []
    assert not draft.exists()


def test_a_held_delivery_is_released_or_discarded_once(params: Params) -> None:
    drop("one", swapped(30, 10), range(30, 40))
    drop("two", swapped(50, 10), range(50, 60))
    one, two = (delivery.name for delivery in ingest.ingest(params, NIGHT, load))
    with pytest.raises(UserError, match=f"expected one of: documents/{one}, documents/{two}"):
        ingest.release("three")
    released = ingest.release(f"documents/{one}")
    assert (released.state, released.accepted) == ("merged", 10)
    assert [row.id for row in merged_rows()] == [f"n{number}" for number in range(30, 40)]
    assert ingest.discard(two).state == "discarded"
    assert len(merged_rows()) == 10
    assert [(d.name, d.state) for d in ingest.deliveries()] == [(one, "merged"), (two, "discarded")]
    for name in (one, two):
        with pytest.raises(UserError, match="expected one of: none"):
            ingest.release(name)


def test_a_released_delivery_is_checked_against_what_came_since(params: Params) -> None:
    drop("held", swapped(30, 10), range(30, 40))
    name = only(ingest.ingest(params, NIGHT, load)).name
    drop("since", [pair(30, id="since"), pair(31, id="n32", prompt="What number?")], [30, 31])
    ingest.ingest(params, "2026-01-03", load)
    released = ingest.release(name)  # 30 is contradicted by now, the id n32 is taken
    assert (released.accepted, released.quarantined) == (8, 2)
    assert [row.id for row in merged_rows()] == ["since", "n32", "n31", *(f"n{number}" for number in range(33, 40))]


def test_the_picture_shows_the_deliveries_that_were_judged(params: Params) -> None:
    assert ingest.drift_picture([]) is None
    drop("small", good(30, 2), [30, 31])
    assert ingest.drift_picture(ingest.ingest(params, NIGHT, load)) is None
    drop("poison", swapped(40, 10), range(40, 50))
    shown = ingest.drift_picture(ingest.ingest(params, NIGHT, load))
    assert shown is not None
    assert shown.startswith(b"\x89PNG")


# --- killed at every moment ----------------------------------------------------------------------------------------------

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
WRITES = os.O_WRONLY | os.O_RDWR


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is about to change something in the project's data or inbox."""
    if event == "os.remove" and arguments[1] != -1:  # in a folder of the inbox that is open
        return True
    if event not in EVENTS or not str(arguments[0]).startswith(("data/", "inbox/")):
        return False
    return event != "open" or bool((arguments[2] or 0) & WRITES)


def forked(work: Callable[[], object], kill_at: int = 0) -> int | None:
    """Do ``work`` in a fork that SIGKILLs itself at its ``kill_at``-th moment; the number of moments, None if killed.

    Each change has a moment before it, and writing a file a second one: when only the first byte is written.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if not changes_files(event, arguments):
                return
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if event == "open":
                seen += 1
                if seen == kill_at:
                    path, _, flags = arguments
                    os.write(os.open(path, flags, 0o666), b"{")
                    os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = lambda handle: None  # a kill loses nothing that was written, and a disk is slow
        sys.addaudithook(count)
        try:
            work()
            os.write(writer, str(seen).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        answer = told.read()
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert killed or answer, "it ended with an error"
    return None if killed else int(answer)


def evening() -> None:
    """What is in the inbox: a delivery with a new row and a bad one, a poisoned one, and one that came before."""
    drop("a_good", [pair(30), pair(31, id="a5")], [30, 31])
    drop("b_poison", swapped(40, 4), range(40, 44))
    drop("c_known", good(60, 1), [60])


def survives_every_kill(start: Path, work: Callable[[], object], again: Callable[[], object], least: int) -> None:
    """Compare an undisturbed run of ``work`` with runs killed at each moment and continued by ``again``."""
    import_module("tasks.stages.reward")  # torch: read once here, not in every fork
    shutil.copytree(Path.cwd(), start)
    moments = forked(work)
    assert moments is not None
    assert moments >= least
    calm = tree(Path("data"), Path("inbox"))
    for moment in range(1, moments + 1):
        for folder in ("data", "inbox"):
            shutil.rmtree(folder)
            shutil.copytree(start / folder, folder)
        assert forked(work, kill_at=moment) is None, "it ended before it was to be killed"
        assert forked(again) is not None
        assert tree(Path("data"), Path("inbox")) == calm, f"killed at moment {moment} of {moments}"


def test_killed_at_any_moment_and_run_again_a_night_ends_as_if_undisturbed(params: Params, tmp_path: Path) -> None:
    drop("c_known", good(60, 1), [60])
    ingest.ingest(params, "2026-01-01", load)
    evening()

    def night() -> None:
        ingest.ingest(params, NIGHT, load)

    survives_every_kill(tmp_path.with_name(f"{tmp_path.name}-start"), night, night, least=40)
    assert Counter(delivery.state for delivery in ingest.deliveries()) == {"merged": 2, "held": 1}
    assert [row.id for row in merged_rows()] == ["n60", "n30"]


def test_killed_at_any_moment_a_release_is_taken_back_or_ended_by_the_next_night(params: Params, tmp_path: Path) -> None:
    drop("poison", swapped(40, 4), range(40, 44))
    name = only(ingest.ingest(params, NIGHT, load)).name

    def next_night() -> None:
        ingest.ingest(params, "2026-01-03", load)
        if any(delivery.state == "held" for delivery in ingest.deliveries()):
            ingest.release(name)

    survives_every_kill(tmp_path.with_name(f"{tmp_path.name}-start"), lambda: ingest.release(name), next_night, least=10)
    assert len(merged_rows()) == 4
