"""What Great Expectations expects of a data set, on the columns of ``mor.data.checks``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mor.config import Validation
from mor.data.checks import TEXTS, json_types
from mor.data.schema import Preference, Prompt, Question, Row

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import ColumnMapExpectation

DROP = "or remove the line"
Role = Literal["clients", "public", "eval", "pairs", "inbox"]
KINDS: dict[Role, type[Row]] = {
    "clients": Preference,
    "public": Prompt,
    "eval": Question,
    "pairs": Preference,
    "inbox": Preference,  # rows on their way to a client's; their table has a column more, see ``check_delivery``
}


def expectations(role: Role, root: Path, settings: Validation) -> list[ColumnMapExpectation]:
    """The expectations of a data set whose images are relative to ``root``."""
    kind = KINDS[role]
    suite = [*_format_rules(kind), *_text_rules(kind, settings), *_picture_rules(root, settings)]
    if kind is Preference:
        suite += [
            _expect("Null", "equal_answers", "chosen and rejected differ", f"correct one {DROP}"),
            _expect("Null", "contradicted_by", "no other line prefers the opposite", "keep one of the two lines"),
        ]
    if role in ("clients", "inbox", "public"):
        suite.append(_expect("Null", "in_test", "the picture is in no evaluation set", "remove the line: tests stay unseen"))
    if role in ("clients", "inbox"):
        suite.append(_expect("Null", "in_public", "the picture is not in the public set", "remove the line here or there"))
    if role == "inbox":
        suite.append(_expect("Null", "id_taken", "the id is not that of another pair", f"give the line another id {DROP}"))
    return suite


def _expect(rule: str, column: str, claim: str, fix: str, **bounds: Any) -> ColumnMapExpectation:
    """``ExpectColumnValuesToBe<rule>``; nulls are skipped. Claim and fix are what a message says."""
    from great_expectations.expectations import core

    built: ColumnMapExpectation = getattr(core, f"ExpectColumnValuesToBe{rule}")(
        column=column, description=claim, meta={"fix": fix}, **bounds
    )
    return built


def _format_rules(kind: type[Row]) -> Iterator[ColumnMapExpectation]:
    yield _expect("Null", "parse_error", "the line is a JSON object in UTF-8", f"correct {DROP}")
    for key, types in json_types(kind).items():
        claim, verb = f'"{key}" has the type {" or ".join(types)}', "correct" if "missing" in types else "add or correct"
        yield _expect("InSet", f"{key}_type", claim, f"{verb} the key {DROP}", value_set=list(types))
    yield _expect("Null", "id_repeated", "id is unique", f"give each line an id of its own {DROP}")


def _text_rules(kind: type[Row], settings: Validation) -> Iterator[ColumnMapExpectation]:
    for key in (key for key in TEXTS if key in kind.model_fields):
        setting = f"max_{'prompt' if key == 'prompt' else 'answer'}_characters"
        limit = None if key == "id" else int(getattr(settings, setting))
        claim = f"{key} has 1 to {limit} characters" if limit else f"{key} has characters"
        fix = f"rewrite it, raise validation.{setting} {DROP}" if limit else f"write it {DROP}"
        yield _expect("Between", f"{key}_length", claim, fix, min_value=1, max_value=limit)


def _picture_rules(root: Path, settings: Validation) -> Iterator[ColumnMapExpectation]:
    yield _expect("Null", "image_outside", f"image is a path inside {root}", f"move the picture there {DROP}")
    yield _expect("Null", "image_missing", f"image is a file in {root}", f"add the picture, correct the path {DROP}")
    formats = " or ".join(settings.image_formats)
    yield _expect("Null", "image_unreadable", "image can be decoded", f"save it again as {formats} {DROP}")
    low, high = settings.min_image_side, settings.max_image_side
    fix = f"resize it, change validation.min_image_side or max_image_side {DROP}"
    for side in ("width", "height"):
        claim = f"image {side} is {low} to {high} pixels"
        yield _expect("Between", f"image_{side}", claim, fix, min_value=low, max_value=high)
