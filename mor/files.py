"""Files and folders that are there whole or not at all, and digests of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DRAFT = ".partial"  # ends the name of what is still being written
DIGEST_LENGTH = 16  # MLflow takes 36


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + DRAFT)
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(draft)
    draft.replace(path)
    sync(path.parent)


@contextmanager
def fresh_folder(final: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``final`` once the block has ended well."""
    draft = final.with_name(f".{final.name}{DRAFT}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    yield draft
    move_in(draft, final)


def move_in(fresh: Path, final: Path) -> None:
    """Put a finished folder into place at once."""
    shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    fresh.replace(final)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_below(folder: Path) -> None:
    """The same for a folder and all that it holds."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def digest(path: Path) -> str:
    """Content digest of a file, or of a folder's files and their names."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as content:
            total.update(hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()[:DIGEST_LENGTH]
