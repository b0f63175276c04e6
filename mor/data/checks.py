"""What is to be known about a raw data file before anybody trains on it: one table row a line, and how faults are told.

A raw file is read leniently: a line that is no JSON, misses a key or points at a broken image becomes a row of the
table with the evidence in a column, never an exception. Expectations are declared on these columns elsewhere:

============================  ======================================================================================
``line``, ``text``            number in the file, from 1, and the raw text (bytes that are no UTF-8 as ``\\xNN``)
``parse_error``               why the line is no JSON object, else null
``<key>_type``                JSON type of every key of the schema: string, number, list of strings, ..., missing
``id``, ``<key>_length``      the id, and characters of the required texts, white space at the ends not counted
``image_outside``             what is wrong with a path that leaves the folder; likewise ``image_missing``, ``_unreadable``
``image_width``, ``_height``  pixels
``image_hash``                SHA-256 of size and RGB values: the same picture under another name or format is the same
``equal_answers``             that they are, if chosen and rejected are one answer
``contradicted_by``           the line that prefers the opposite for the same picture and prompt
============================  ======================================================================================

A value that cannot be known (the width of a missing image) is null, so that a row is blamed for its first fault only.
But for ``text`` and ``id`` no column holds anything that somebody wrote: evidence is kinds, counts, line numbers and files of
the server, so that it may be shown to others (docs/privacy.md).
"""

from __future__ import annotations

import codecs
import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

import pandas as pd
from pydantic_core import from_json

from mor.data import pictures
from mor.data.schema import DataError, Row

SHOWN = 10  # lines and values that a message lists before it only counts
TEXTS = ("id", "prompt", "chosen", "rejected", "answer")
NUMBERS = ("line", "image_width", "image_height", *(f"{key}_length" for key in TEXTS))
_TYPES = {str: "string", bool: "boolean", int: "number", float: "number", list: "list", dict: "object", NoneType: "null"}


@dataclass(frozen=True)
class Problem:
    """One unmet expectation of one file, with the lines that break it and what they hold instead."""

    name: str  # of the set, e.g. clients.documents
    file: Path
    claim: str  # what was expected
    fix: str
    lines: tuple[int, ...]
    got: tuple[str, ...]  # one a line

    def __str__(self) -> str:
        lines = f"{'lines' if len(self.lines) > 1 else 'line'} {_listed(self.lines)}"
        got = _listed(dict.fromkeys(self.got))
        return f"{self.name}: {self.file}: {lines}: expected that {self.claim}, got {got}; fix: {self.fix}"


def _listed(values: Iterable[object]) -> str:
    texts = [text if len(text := str(value)) <= 80 else text[:77] + "..." for value in values]
    more = f", ... ({len(texts)} in all)" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def json_types(kind: type[Row]) -> dict[str, tuple[str, ...]]:
    """Allowed JSON types of every key of a schema, "missing" among them for optional keys."""
    allowed = {}
    for key, field in kind.model_fields.items():
        options = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
        names = tuple({str: "string", NoneType: "null"}.get(option, "list of strings") for option in options)
        allowed[key] = names if field.is_required() else (*names, "missing")
    return allowed


def inspect(
    path: Path, kind: type[Row], root: Path, max_side: int, formats: Collection[str] = pictures.FORMATS
) -> pd.DataFrame:
    """The table above for one JSON Lines file; blank lines are skipped.

    ``root`` is the folder that image paths are relative to; pictures with a side above ``max_side`` pixels are
    measured but not decoded, others than of ``formats`` are not read. Raises ``DataError`` if there is no such file or it
    has no rows.
    """
    form = f"one JSON object a line with {', '.join(key for key, field in kind.model_fields.items() if field.is_required())}"
    if not path.parent.is_dir():
        raise DataError(f"{path}: no such folder; create {path.parent} and in it {path.name}, {form}")
    if not path.is_file():
        raise DataError(f"{path}: no such file; write it, {form}")
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    images: dict[str, dict[str, Any]] = {}
    rows, parsed = [], []
    for number, raw in enumerate(lines, 1):
        if raw.strip():
            values, error = _parse(raw)
            rows.append(_facts(number, raw, values, error, kind))
            parsed.append(values or {})
            if isinstance(image := parsed[-1].get("image"), str):
                if image not in images:
                    images[image] = _picture(root, image, max_side, formats)
                rows[-1] |= images[image]
    if not rows:
        raise DataError(f"{path}: the file is empty; write {form}")
    if "chosen" in kind.model_fields:
        _compare_answers(rows, parsed)
    table = pd.DataFrame(rows, dtype=object)
    return table.astype({column: "Int64" for column in NUMBERS if column in table})


def shared_images(table: pd.DataFrame, others: Mapping[Path, pd.DataFrame]) -> list[str | None]:
    """For every row, ``file:line`` of the first row of ``others`` with the same picture, or None."""
    seen: dict[str, str] = {}
    for path, other in others.items():
        for line, digest in zip(other["line"], other["image_hash"], strict=True):
            seen.setdefault(digest, f"{path}:{line}")
    return [seen.get(digest) if isinstance(digest, str) else None for digest in table["image_hash"]]


def repeated_ids(table: pd.DataFrame) -> list[str | None]:
    """For every row, another line of the table with the same id, or None."""
    rows = [(int(line), name) for line, name in zip(table["line"], table["id"], strict=True)]
    lines = defaultdict(list)
    for line, name in rows:
        if isinstance(name, str):
            lines[name].append(line)
    others = [next((other for other in lines.get(name, ())[:2] if other != line), None) for line, name in rows]
    return [None if other is None else f"that of line {other}" for other in others]


def _parse(raw: bytes) -> tuple[dict[str, Any] | None, str | None]:
    """The object on a line, or None and why there is none."""
    try:
        values = from_json(raw.decode("utf-8"), allow_inf_nan=False)
    except UnicodeDecodeError as error:
        return None, f"byte {raw[error.start]:#04x} at position {error.start + 1} is not UTF-8"
    except ValueError as error:
        return None, f"not JSON: {error}".replace(" at line 1 column", " at column")
    return (values, None) if isinstance(values, dict) else (None, f"a JSON {_TYPES[type(values)]}, not an object")


def _facts(number: int, raw: bytes, values: dict[str, Any] | None, error: str | None, kind: type[Row]) -> dict[str, Any]:
    row: dict[str, Any] = {"line": number, "text": raw.decode("utf-8", "backslashreplace").strip(), "parse_error": error}
    fields = kind.model_fields
    if values is None:
        row |= {f"{key}_type": None for key in fields}
    else:
        row |= {f"{key}_type": _json_type(values[key]) if key in values else "missing" for key in fields}
    texts = {key: value if isinstance(value := (values or {}).get(key), str) else None for key in TEXTS if key in fields}
    row |= {f"{key}_length": None if text is None else len(text.strip()) for key, text in texts.items()}
    unknown = dict.fromkeys(("image_outside", "image_missing", "image_unreadable", "image_width", "image_height", "image_hash"))
    return row | {"id": texts["id"]} | unknown


def _json_type(value: Any) -> str:
    strings = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return "list of strings" if strings else _TYPES[type(value)]


def _picture(root: Path, image: str, max_side: int, formats: Collection[str]) -> dict[str, Any]:
    """What is known of one picture; keys are columns."""
    if pictures.leaves(image):
        return {"image_outside": "a path that leaves it"}
    try:
        if not (root / image).is_file():
            return {"image_missing": "no such file"}
        with pictures.opened(root / image, formats) as picture:
            width, height = picture.size
            size = {"image_width": width, "image_height": height}
            if max(width, height) > max_side:
                return size
            rgb = pictures.pixels(picture).tobytes()
    except Exception as error:  # decoders raise whatever a broken file provokes; its kind is kept as evidence
        return {"image_unreadable": pictures.why(error)}
    return size | {"image_hash": hashlib.sha256(f"{width}x{height}:".encode() + rgb).hexdigest()}


def _compare_answers(rows: Sequence[dict[str, Any]], parsed: Sequence[dict[str, Any]]) -> None:
    """Fill ``equal_answers`` and ``contradicted_by`` of preference rows."""
    judged = []
    first: dict[tuple[str, ...], int] = {}
    for row, values in zip(rows, parsed, strict=True):
        prompt, chosen, rejected = (str(values.get(key)).strip() for key in ("prompt", "chosen", "rejected"))
        whole = all(row[f"{key}_type"] == "string" for key in ("prompt", "chosen", "rejected"))
        equal = whole and chosen == rejected
        row |= {"equal_answers": "one answer twice" if equal else None, "contradicted_by": None}
        if whole and not equal and row["image_hash"]:
            judged.append((row, (row["image_hash"], prompt, rejected, chosen)))
            first.setdefault((row["image_hash"], prompt, chosen, rejected), row["line"])
    for row, opposite in judged:
        if line := first.get(opposite):
            row["contradicted_by"] = f"line {line}"
