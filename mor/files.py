"""Files and folders that appear whole or not at all: a kill in between leaves what was there before."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """A folder to write into; it takes the place of ``final`` at the end of the block, and not after an error."""
    fresh = final.with_name(f"{final.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    move_in(fresh, final)


def move_in(fresh: Path, final: Path) -> None:
    """Put a finished folder into place at once."""
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    fresh.replace(final)


def write_whole(path: Path, text: str) -> None:
    """Write a text file, in UTF-8; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.partial")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
