"""Files that are there whole or not at all, also after a power cut."""

from __future__ import annotations

import os
from pathlib import Path

DRAFT = ".partial"  # ends the names of what is still being written


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside the file's place and rename: readers find the old content or the new one."""
    draft = path.with_name(path.name + DRAFT)
    draft.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(draft)
    draft.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_below(folder: Path) -> None:
    """The same for a folder and all that it holds."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
