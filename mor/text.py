"""Text of others, shown to people: what it may look like, and what of an error may be told where others read it.

A name, an id or an answer that somebody else wrote may hold characters that a terminal obeys, that turn the reading
direction round, or that end a line. ``printable`` makes all of them visible. Markup is the business of who writes the
page: HTML is escaped by its templates, and rich is told ``markup=False``.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from mor.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 200  # characters of one name or text
LONGEST_MESSAGE = 4000  # of an error


def printable(text: object, most: int | None = LONGEST, *, lines: bool = False) -> str:
    """``text`` with every character that is not printable as an escape, cut after ``most`` characters.

    Control characters, line breaks (unless ``lines``), bidi overrides, invisible marks, unusual spaces and bytes that were no
    UTF-8 are escaped: ``"a\\x1b[2J"`` -> ``"a\\\\x1b[2J"``.
    """
    kept = str(text)
    if most is not None and len(kept) > most:
        kept = kept[: most - 1] + "…"
    return "".join(c if c.isprintable() or (lines and c == "\n") else c.encode("unicode_escape").decode() for c in kept)


def visible(value: object) -> object:
    """``printable`` for the pages' templates, whole and with its line breaks; what is no plain string is left as it is."""
    return printable(value, None, lines=True) if type(value) is str else value


def words(name: object) -> str:
    """A name for people: ``held_out`` -> ``held out``."""
    return str(name).replace("_", " ")


def public_message(error: BaseException) -> str:
    """What may be said of an error in shared places: MLflow, Prefect, the webhook, a commit.

    Texts of ``UserError``, and of errors whose class says ``public = True``, are ours and hold no content of anybody's data.
    Those of other libraries may hold a row, a path or a value, so of them there is the kind and the place alone.
    """
    if isinstance(error, UserError) or getattr(error, "public", False):
        return printable(error, LONGEST_MESSAGE, lines=True)
    return f"{type(error).__name__}{raised_at(error)}"


def raised_at(error: BaseException) -> str:
    """Where it was raised, as `` at tasks/stages/reward.py:63``: the innermost line of ours; empty where nowhere in it."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(ROOT) and not {".venv", "site-packages"} & set(file.parts):
            return f" at {file.relative_to(ROOT)}:{frame.lineno}"
    return ""
