"""Files that others put into a folder, opened and removed without ever leaving it.

A path is walked one part at a time from the folder's own descriptor, and no part may be a link (``O_NOFOLLOW``): what is
swapped between a look and an open is refused as well, since the descriptor itself is asked what it is. A pipe is opened without
waiting for its other end, and refused. A file with a second name (a hard link) is refused too: it may be somebody else's.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LONGEST_NAME = 1000  # bytes of a path inside the folder
LONGEST_PART = 255  # of one name in it, Linux' own limit
CHUNK = 1 << 20
HERE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
KINDS = {
    stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # nothing that could be meant


class Stray(Exception):
    """What lies there is no file of this folder; the message says what it is, and nothing of its name."""


class TooLarge(Exception):
    """There is more than is taken; the message says how much is."""


@contextmanager
def open_inside(root: Path, name: str) -> Iterator[BinaryIO]:
    """The ordinary file ``name`` below ``root``, to read.

    Raises ``Stray`` for a link, a pipe, a device or a path that leaves ``root``, and ``OSError`` where there is none, where it
    is a folder (``ABSENT``) or where it cannot be read. ``root`` itself is trusted.
    """
    with _parent(root, name) as (folder, last):
        _expect(os.stat(last, dir_fd=folder, follow_symlinks=False), stat.S_IFREG)  # before opening: that may do something
        handle = _open(last, FILE, folder)
        with os.fdopen(handle, "rb") as file:
            _expect(os.fstat(handle), stat.S_IFREG)
            yield file


def remove_inside(root: Path, name: str) -> None:
    """Remove a file below ``root``, in the folder that its path leads to without links; raises as ``open_inside`` does."""
    with _parent(root, name) as (folder, last):
        _expect(os.stat(last, dir_fd=folder, follow_symlinks=False), stat.S_IFREG)
        os.unlink(last, dir_fd=folder)  # by descriptor: a path would be walked anew


def visible_names(folder: Path) -> list[str]:
    """Names in a folder, sorted, hidden ones left out; none where it is no folder, or a link to one."""
    try:
        handle = os.open(folder, HERE | os.O_NOFOLLOW)
    except OSError:  # absent, no folder, closed to us or a link (ELOOP)
        return []
    try:
        return sorted(name for name in os.listdir(handle) if not name.startswith("."))  # noqa: PTH208 (a descriptor)
    finally:
        os.close(handle)


def copy_bounded(source: BinaryIO, target: Path, most: int) -> int:
    """Copy a file; returns its bytes. Raises ``TooLarge`` once there are more than ``most``."""
    copied = 0
    with target.open("xb") as file:
        while chunk := source.read(CHUNK):
            copied += len(chunk)
            if copied > most:
                raise TooLarge(f"more than {most} bytes")
            file.write(chunk)
    return copied


def bounded_lines(source: BinaryIO, longest: int) -> Iterator[bytes]:
    """Lines one by one; raises ``TooLarge`` at one of more than ``longest`` bytes, of which no more is read."""
    for number, line in enumerate(iter(lambda: source.readline(longest + 2), b""), 1):  # with its end, which may be CR LF
        if len(line.rstrip(b"\r\n")) > longest:
            raise TooLarge(f"line {number} has more than {longest} bytes")
        yield line


@contextmanager
def _parent(root: Path, name: str) -> Iterator[tuple[int, str]]:
    """A descriptor of the folder that holds the file, and the file's name in it."""
    parts = name.split("/")
    if "\0" in name or name.startswith("/") or {"", ".", ".."} & set(parts):
        raise Stray("a path that leaves its folder")
    if len(os.fsencode(name)) > LONGEST_NAME or any(len(os.fsencode(part)) > LONGEST_PART for part in parts):
        raise FileNotFoundError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    folder = os.open(root, HERE)
    try:
        for part in parts[:-1]:
            _expect(os.stat(part, dir_fd=folder, follow_symlinks=False), stat.S_IFDIR)
            inner = _open(part, HERE | os.O_NOFOLLOW, folder)
            os.close(folder)
            folder = inner
        yield folder, parts[-1]
    finally:
        os.close(folder)


def _open(name: str, flags: int, folder: int) -> int:
    """Open it; a link or another kind that was swapped in since the look at it is ``Stray``."""
    try:
        return os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError:
        _expect(os.stat(name, dir_fd=folder, follow_symlinks=False), stat.S_IFDIR if flags & os.O_DIRECTORY else stat.S_IFREG)
        raise


def _expect(found: os.stat_result, kind: int) -> None:
    """Raise where it is of another kind: ``OSError`` for a folder or a file in the other's place, else ``Stray``."""
    is_kind = stat.S_IFMT(found.st_mode)
    if is_kind == kind:
        if kind == stat.S_IFREG and found.st_nlink > 1:
            raise Stray("a file with a second name (a hard link)")
        return
    if is_kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if is_kind == stat.S_IFREG:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    raise Stray(KINDS.get(is_kind, "no ordinary file"))
