"""Broken input of every kind is named by file, line and fix, and in quarantine mode nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.validate import validate
from mor.config import Validation, load_params
from mor.data.checks import inspect, json_types
from mor.data.schema import DataError, Preference, Prompt, Question, read_rows
from tasks.project.command_line import main
from tasks.stages import validate as validation

# Great Expectations and what it imports warn about their own futures.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

SETTINGS = Path(__file__).parents[3] / "params.yaml"
CLIENT = Path("data/clients/a")
PREFERENCES = CLIENT / "preferences.jsonl"
PROMPTS = Path("data/public/prompts.jsonl")
SUITE = Path("data/eval/a.jsonl")
PAIRS = Path("data/eval/pairs/a.jsonl")
GOOD = 12  # rows of the healthy client
Rows = Sequence[dict[str, Any] | bytes]


def settings(on_bad_rows: str) -> Validation:
    limits: dict[str, Any] = {
        "max_prompt_characters": 50,
        "max_answer_characters": 20,
        "min_image_side": 16,
        "max_image_side": 64,
    }
    limits["image_formats"] = ["PNG", "BMP"]
    return Validation.model_validate(limits | {"on_bad_rows": on_bad_rows})


def picture(path: Path, number: int, size: tuple[int, int] = (16, 16)) -> None:
    """A picture that no other number has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number, 0, 0)).save(path)


def pair(number: int, **changes: Any) -> dict[str, Any]:
    row = {"id": f"a{number}", "image": f"images/{number}.png", "prompt": "What is it?", "chosen": "2", "rejected": "3"}
    return row | changes


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


def write(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))


def write_healthy(extra: Rows = ()) -> None:
    """One client with 12 rows (and ``extra`` ones), two public prompts, one suite of two questions, one held-out pair."""
    for number in range(30):
        picture(CLIENT / f"images/{number}.png", number)
    for number in range(2):
        picture(Path(f"data/public/images/p{number}.png"), 200 + number)
        picture(Path(f"data/eval/images/e{number}.png"), 220 + number)
    picture(Path("data/eval/images/h0.png"), 230)
    write(PREFERENCES, [*(pair(number) for number in range(GOOD)), *extra])
    write(PROMPTS, [{"id": f"p{i}", "image": f"images/p{i}.png", "prompt": "What is it?"} for i in range(2)])
    question = {"prompt": "What is it?", "answer": "2", "category": "c"}
    write(SUITE, [{"id": f"e{i}", "image": f"images/e{i}.png"} | question for i in range(2)])
    write(PAIRS, [pair(0, image="images/h0.png", kind="style")])


def run(on_bad_rows: str, clients: tuple[str, ...] = ("a",)) -> str:
    """Validate; returns the message of the ``DataError``, empty if there was none."""
    verdicts, missing = validation.check(clients, settings(on_bad_rows))
    try:
        validation.settle(verdicts, missing, settings(on_bad_rows))
    except DataError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Broken:
    """Rows added to the healthy client, from line 13 on, of which ``bad`` break a claim."""

    kind: str
    rows: Rows
    claim: str
    got: str
    fix: str
    bad: tuple[int, ...] = (0,)


JSON = "the line is a JSON object in UTF-8"
ONE = "correct or remove the line"
KEY = "add or correct the key or remove the line"
BROKEN = [
    Broken("invalid JSON", [b'{"id": "j1", "image"'], JSON, "not JSON: EOF while parsing", ONE),
    Broken("array", [b"[1, 2]"], JSON, "a JSON list, not an object", ONE),
    Broken("bytes", [b'{"id": "\xff"}'], JSON, "byte 0xff at position 9 is not UTF-8", ONE),
    Broken("missing key", [without(pair(12), "chosen")], '"chosen" has the type string', "missing", KEY),
    Broken("wrong type", [pair(11, id="b", prompt=7)], '"prompt" has the type string', "number", KEY),
    Broken("null", [pair(13, rejected=None)], '"rejected" has the type string', "null", KEY),
    Broken(
        "optional key", [pair(14, kind=["c"])], '"kind" has the type string or null or missing', "list of strings", "correct"
    ),
    Broken(
        "duplicate id",
        [pair(15), pair(16, id="a15")],
        "id is unique",
        "that of line {1}, that of line {0}",
        "give each line an id of its own",
        (0, 1),
    ),
    Broken("empty id", [pair(17, id="")], "id has characters", "0", "write it or remove the line"),
    Broken(
        "missing image", [pair(18, image="no.png")], f"image is a file in {CLIENT}", "no such file", "add the picture, correct"
    ),
    Broken(
        "outside", [pair(19, image="../b/x.png")], f"image is a path inside {CLIENT}", "a path that leaves", "move the picture"
    ),
    Broken("undecodable", [pair(20, image="images/bad.png")], "image can be decoded", "of no known format", "save it again"),
    Broken("cut off", [pair(21, image="images/cut.png")], "image can be decoded", "OSError", "save it again as PNG"),
    Broken(
        "too small", [pair(22, image="images/low.png")], "image width is 16 to 64 pixels", "8", "change validation.min_image"
    ),
    Broken("too large", [pair(23, image="images/high.png")], "image height is 16 to 64 pixels", "80", "or max_image_side"),
    Broken("empty prompt", [pair(24, prompt=" \t")], "prompt has 1 to 50 characters", "0", "raise validation.max_prompt_"),
    Broken("long answer", [pair(25, chosen="x" * 21)], "chosen has 1 to 20 characters", "21", "raise validation.max_answer_"),
    Broken(
        "equal answers",
        [pair(26, rejected="2 ")],
        "chosen and rejected differ",
        "one answer twice",
        "correct one or remove the line",
    ),
    Broken(  # the same pixels in another file
        "contradiction",
        [pair(27), pair(28, image="images/copy.bmp", chosen="3", rejected="2")],
        "no other line prefers the opposite",
        "line {1}, line {0}",  # the first names the second, the second the first
        "keep one of the two lines",
        (0, 1),
    ),
    Broken("swap elsewhere", [pair(29, chosen="3", rejected="2")], "", "", "", ()),  # annotators err: fine on another picture
    Broken("test", [pair(30, image="images/e0.png")], "the picture is in no evaluation set", f"{SUITE}:1", "tests stay unseen"),
    Broken(
        "held out", [pair(31, image="images/h0.png")], "the picture is in no evaluation set", f"{PAIRS}:1", "remove the line"
    ),
    Broken(
        "public", [pair(32, image="images/p1.png")], "the picture is not in the public set", f"{PROMPTS}:2", "here or there"
    ),
]


def lines_of(broken: Broken) -> tuple[list[int], list[int]]:
    """Lines of the case's rows and of its bad rows."""
    start = GOOD + 1 + sum(len(other.rows) for other in BROKEN[: BROKEN.index(broken)])
    return [start + i for i in range(len(broken.rows))], [start + i for i in broken.bad]


def write_broken() -> None:
    write_healthy([row for broken in BROKEN for row in broken.rows])
    images = CLIENT / "images"
    (images / "bad.png").write_text("no picture")
    (images / "cut.png").write_bytes((images / "1.png").read_bytes()[:50])
    picture(images / "low.png", 40, (8, 16))
    picture(images / "high.png", 41, (16, 80))
    for number, name in {27: "copy.bmp", 220: "e0.png", 230: "h0.png", 201: "p1.png"}.items():
        picture(images / name, number)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is said and written about a client folder with every kind of broken row, in both modes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("broken"))
        write_broken()
        message = run("fail")
        found = {"message": message, "written": sorted(Path("data").glob("validated*")) + sorted(Path("data").glob("quar*"))}
        found["site"] = Path("reports/validation/index.html").read_text()
        found["quarantine message"] = run("quarantine")
        found["raw"] = PREFERENCES.read_bytes()
        found["clean"] = read_rows(Path("data/validated/clients/a.jsonl"), Preference)
        found["aside"] = [json.loads(line) for line in Path("data/quarantine/clients/a.jsonl").read_text().splitlines()]
        found["quarantined"] = [path.as_posix() for path in Path("data/quarantine").rglob("*.jsonl")]
        return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_healthy()
    return tmp_path


@pytest.mark.parametrize("broken", [case for case in BROKEN if case.bad], ids=lambda broken: broken.kind)
def test_message_names_set_file_exact_lines_and_fix(told: dict[str, Any], broken: Broken) -> None:
    lines = [line for other in BROKEN if other.claim == broken.claim for line in lines_of(other)[1]]
    place = f"  clients.a: {PREFERENCES}: {'lines' if len(lines) > 1 else 'line'} {', '.join(map(str, lines))}: expected that "
    (said,) = [line for line in told["message"].splitlines() if line.startswith(place + broken.claim + ", got ")]
    got, fix = said.split(", got ")[1].split("; fix: ")
    assert broken.got.format(*lines) in got
    assert broken.fix in fix


@pytest.mark.parametrize("broken", [case for case in BROKEN if case.bad], ids=lambda broken: broken.kind)
def test_a_row_is_blamed_for_its_own_fault_and_not_for_what_follows_from_it(told: dict[str, Any], broken: Broken) -> None:
    reasons = {row["line"]: row["reasons"] for row in told["aside"]}
    for line in lines_of(broken)[1]:
        (reason,) = reasons[line]
        assert reason.startswith(f"expected that {broken.claim}, got ")


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.kind)
def test_quarantine_takes_the_bad_rows_and_no_others(told: dict[str, Any], broken: Broken) -> None:
    rows, bad = lines_of(broken)
    assert [row["line"] for row in told["aside"] if row["line"] in rows] == bad


def test_all_problems_of_a_run_are_told_at_once_and_nothing_is_written(told: dict[str, Any]) -> None:
    assert "the pipeline stops here" in told["message"]
    assert "validation.on_bad_rows: quarantine in params.yaml" in told["message"]
    assert told["written"] == []
    assert "clients.a" in told["site"]  # Data Docs show the failed run


def test_quarantine_loses_nothing(told: dict[str, Any]) -> None:
    raw = told["raw"].splitlines()
    assert told["quarantine message"] == ""
    assert len(told["clean"]) + len(told["aside"]) == len(raw)
    assert all(row["text"] == raw[row["line"] - 1].decode("utf-8", "backslashreplace") for row in told["aside"])
    assert [row.id for row in told["clean"]] == [*(f"a{number}" for number in range(GOOD)), "a29"]
    assert told["quarantined"] == ["data/quarantine/clients/a.jsonl"]  # test rows are never set aside for being leaked


WHOLE: dict[str, tuple[tuple[str, ...], Callable[[], object], str]] = {
    "missing folder": (("a", "b"), lambda: None, "clients.b: data/clients/b/preferences.jsonl: no such folder; create"),
    "missing file": (("a",), PREFERENCES.unlink, f"clients.a: {PREFERENCES}: no such file; write it, one JSON object a line"),
    "empty file": (("a",), lambda: PREFERENCES.write_bytes(b"\n \n"), f"clients.a: {PREFERENCES}: the file is empty; write"),
    "no public prompts": (("a",), PROMPTS.unlink, f"public: {PROMPTS}: no such file; write it"),
    "empty suite": (("a",), lambda: SUITE.write_bytes(b""), f"eval.a: {SUITE}: the file is empty"),
    "no suites": (("a",), SUITE.unlink, "eval: data/eval: no evaluation suite; write one <suite>.jsonl"),
    "nothing parses": (("a",), lambda: write(SUITE, [b"{"] * 3), f"eval.a: {SUITE}: at least 1 clean row needed, got 0 of 3"),
    "few rows": (
        ("a",),
        lambda: write(PREFERENCES, [*(pair(number) for number in range(9)), b"{", b"{"]),
        f"clients.a: {PREFERENCES}: at least 10 clean rows needed, got 9 of 11",
    ),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_set_as_a_whole_stops_the_pipeline_even_in_quarantine_mode(project: Path, kind: str) -> None:
    clients, spoil, fragment = WHOLE[kind]
    spoil()
    message = run("quarantine", clients)
    assert fragment in message
    assert "To set bad rows aside" not in message  # that would not help here
    assert not Path("data/validated").exists()


def test_healthy_data_passes_into_canonical_files(project: Path) -> None:
    Path("data/validated").mkdir()
    Path("data/validated/stale.jsonl").touch()
    assert run("fail") == ""
    assert read_rows(Path("data/validated/clients/a.jsonl"), Preference) == read_rows(PREFERENCES, Preference)
    assert read_rows(Path("data/validated/public.jsonl"), Prompt) == read_rows(PROMPTS, Prompt)
    assert read_rows(Path("data/validated/eval/a.jsonl"), Question) == read_rows(SUITE, Question)
    assert read_rows(Path("data/validated/eval/pairs/a.jsonl"), Preference) == read_rows(PAIRS, Preference)
    assert not list(Path("data").glob("validated/stale*")) + list(Path("data").glob("*.partial"))
    assert Path("reports/validation/index.html").exists()


def test_a_public_picture_in_the_test_is_the_public_rows_fault(project: Path) -> None:
    picture(Path("data/public/images/p0.png"), 221)
    assert f"public: {PROMPTS}: line 1: expected that the picture is in no evaluation set, got {SUITE}:2" in run("fail")
    assert run("quarantine") == ""
    assert [row.id for row in read_rows(Path("data/validated/public.jsonl"), Prompt)] == ["p1"]
    assert len(read_rows(Path("data/validated/eval/a.jsonl"), Question)) == 2


def test_many_bad_lines_are_counted_and_the_first_ten_listed(project: Path) -> None:
    write(PREFERENCES, [pair(number, chosen="") for number in range(12)])
    listed = "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ... (12 in all): expected that chosen has 1 to 20 characters, got 0;"
    assert listed in run("fail")


class Run:
    """A tracked run that only remembers."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def metrics(self, values: dict[str, float]) -> None:
        self.seen |= values

    def dataset(self, name: str, path: Path, rows: int, context: str) -> None:
        assert path.exists()
        self.seen[name] = rows


def test_every_set_is_tracked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked = Run()
    monkeypatch.setattr(validation, "stage_run", lambda *_: nullcontext(tracked))
    validation.validate_data(["a"], settings("fail"))
    rows = {"clients.a": 12, "public": 2, "eval.a": 2, "pairs.a": 1}
    assert {name: tracked.seen[name] for name in rows} == rows
    assert {name: tracked.seen[f"validation.{name}.rows"] for name in rows} == rows
    assert all(tracked.seen[f"validation.{name}.bad_rows"] == 0 for name in rows)
    assert all(tracked.seen[f"validation.{name}.expectations"] >= 14 for name in rows)


def test_stage_ends_with_the_message_and_exit_code_1(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validation, "stage_run", lambda *_: nullcontext(Run()))
    shutil.copy(SETTINGS, "params.yaml")  # it names three clients, none of which is here
    with pytest.raises(SystemExit, match="1"):
        main(validate)
    told = capsys.readouterr().err
    for client in load_params().clients:
        folder = f"data/clients/{client}"
        assert f"clients.{client}: {folder}/preferences.jsonl: no such folder; create {folder} and in it preferences" in told


def test_byte_order_mark_blank_lines_and_windows_ends_are_no_faults(project: Path) -> None:
    lines = [json.dumps(pair(number)) for number in range(2)]
    PREFERENCES.write_bytes(("\ufeff" + "\r\n\r\n".join(lines) + "\r\n").encode())
    table = inspect(PREFERENCES, Preference, CLIENT, max_side=64)
    assert table["line"].tolist() == [1, 3]
    assert table["parse_error"].tolist() == [None, None]


def test_types_come_from_the_schema() -> None:
    types = json_types(Question)
    assert types["answer"] == ("string",)
    assert types["accepted"] == ("list of strings", "missing")
    assert json_types(Preference)["category"] == ("string", "null", "missing")
