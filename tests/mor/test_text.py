"""Text of others is shown as what it is, and errors of others by kind and place."""

from __future__ import annotations

import pytest

from mor.errors import ConfigError
from mor.text import printable, public_message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scan 1.png", "scan 1.png"),
        ("Größe 大 ✓", "Größe 大 ✓"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("one\ntwo\r", "one\\ntwo\\r"),
        ("\u202egnp.x", "\\u202egnp.x"),  # reads x.png
        ("a\u200bb\u2028c\xa0d", "a\\u200bb\\u2028c\\xa0d"),
        ("\udcff.jsonl", "\\udcff.jsonl"),  # a byte that was no UTF-8
        ("[/] <b>", "[/] <b>"),  # markup is the business of who writes the page
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_what_a_terminal_or_a_reader_would_obey_is_shown_as_an_escape(text: str, expected: str) -> None:
    assert printable(text) == expected


def test_line_breaks_stay_where_a_text_has_lines() -> None:
    assert printable("one\ntwo\x07", None, lines=True) == "one\ntwo\\x07"


def test_our_errors_are_told_in_full_and_those_of_others_by_kind_and_place() -> None:
    assert public_message(ConfigError("seed: expected 0\x1b[2J")) == "seed: expected 0\\x1b[2J"
    with pytest.raises(ValueError) as raised:
        int("private")
    assert public_message(raised.value).startswith("ValueError at tests/mor/test_text.py:")
    assert public_message(ValueError("private")) == "ValueError"
