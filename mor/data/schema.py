"""The bring-your-own folder format: what a client, the server and an evaluator keep on disk.

=====================================  ==================================================================
``data/clients/<client>/``             ``preferences.jsonl``: id, image, prompt, chosen, rejected, category?
``data/public/``                       ``prompts.jsonl``: id, image, prompt, category?
``data/eval/``                         ``<suite>.jsonl``: id, image, prompt, answer, category, accepted?, preferred?
``data/eval/pairs/``                   ``<client>.jsonl``: held-out preferences with their ``kind``
``data/clients/<client>/answers.jsonl``  optional, private: id of a public prompt, answer, accepted?
=====================================  ==================================================================

``image`` is a path relative to the file's folder. ``answer`` is what the client's annotator prefers; ``accepted``
lists every string that is right whatever its style (default: the answer alone); ``preferred`` lists further
answers that satisfy the preference (default: the answer alone).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from mor.data import pictures
from mor.errors import UserError


class DataError(UserError, ValueError):
    """A data file cannot be used; the message names the file, the line and the fix."""


class Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")
    id: str


class Asked(Row):
    """Something asked about a picture."""

    image: str
    prompt: str


class Preference(Asked):
    """One private comparison: the annotator prefers ``chosen`` to ``rejected``."""

    chosen: str
    rejected: str
    category: str | None = None
    kind: str | None = None


class Prompt(Asked):
    """One public prompt of the server; nobody has answered it."""

    category: str | None = None


class Answer(Row):
    """A client's private key to a public prompt: what its annotator would say when asked "A or B?"."""

    answer: str
    accepted: list[str] = []


class Question(Asked):
    """One evaluation question with the preferred answer and all that are right."""

    answer: str
    category: str
    accepted: list[str] = []
    preferred: list[str] = []

    def satisfies(self, text: str) -> bool:
        """Whether ``text`` is what the annotator prefers."""
        return text.strip() in {self.answer, *self.preferred}

    def is_right(self, text: str) -> bool:
        """Whether ``text`` is right, whatever its style."""
        return text.strip() in {self.answer, *self.preferred, *self.accepted}


RowType = TypeVar("RowType", bound=Row)


def read_rows(path: Path, kind: type[RowType]) -> list[RowType]:
    """Rows of a JSON Lines file in order; raises ``DataError`` naming file, line and fix at the first bad row."""
    if not path.exists():
        raise DataError(f"{path}: no such file; expected {kind.__name__.lower()} rows in JSON Lines")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                rows.append(kind.model_validate_json(line))
            except ValidationError as error:
                problem = error.errors()[0]
                where = ".".join(map(str, problem["loc"])) or "row"
                raise DataError(f"{path}:{number}: {where}: {problem['msg']}; fix or remove the line") from None
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON Lines, unset optional fields left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n")


def load_images(root: Path, rows: Sequence[Asked]) -> list[Image.Image]:
    """RGB images of ``rows`` in order, each file read once; ``root`` is the folder that paths are relative to.

    They hold pixels alone, no metadata. Raises ``DataError`` that counts the row whose picture cannot be read.
    """
    cache: dict[str, Image.Image] = {}
    for number, row in enumerate(rows, 1):
        if row.image not in cache:
            try:
                if pictures.leaves(row.image):
                    raise pictures.PictureError("a path that leaves the folder")
                with pictures.opened(root / row.image) as image:
                    cache[row.image] = pictures.pixels(image)
            except Exception as error:  # decoders raise whatever a broken file provokes
                place = f"{root}: the picture of row {number} of {len(rows)} cannot be read: {pictures.why(error)}"
                raise DataError(f"{place}; mend it, or run the validate stage to set its row aside") from None
    return [cache[row.image] for row in rows]
