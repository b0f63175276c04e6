"""A project with a client, deliveries to it, and a reward model that judges them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mor.data.schema import Preference, read_rows
from tasks.nights.deliveries import Delivery
from tasks.project import paths

FOREIGN_WARNINGS = [  # Great Expectations and what it imports warn about their own futures; so does os.fork
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


def swapped(first: int, count: int) -> list[dict[str, Any]]:
    return [pair(number, chosen="3", rejected="2") for number in range(first, first + count)]


def merged_rows() -> list[Preference]:
    """What was added to the client's rows."""
    return read_rows(PREFERENCES, Preference)[HAD:]


def tree(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def only(found: list[Delivery]) -> Delivery:
    (delivery,) = found
    return delivery
