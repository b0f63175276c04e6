"""From the inbox to the archive: copying a delivery, bounded and without leaving the inbox, and clearing the inbox of it.

The copy is what is judged. What the archive holds is removed from the inbox, and nothing else.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pydantic_core import from_json

from mor.config import Bounds
from mor.data import pictures
from mor.files import DRAFT
from tasks.nights.deliveries import QUARANTINE, RECORD, ROWS, Delivery, DeliveryError
from tasks.nights.inbox import (
    ABSENT,
    CHUNK,
    Stray,
    TooLarge,
    bounded_lines,
    copy_bounded,
    open_inside,
    remove_inside,
    visible_names,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # others may mean something to DVC or git, beside which the archive lies
WRITTEN = (".jsonl", DRAFT, ".tmp", ".part")  # suffixes of deliveries, also of those still being written


def copy_delivery(inbox: Path, client: str, file: str, draft: Path, most: Bounds) -> None:
    """Copy rows and images of a delivery into a fresh folder; raises ``DeliveryError`` with what is in the way."""
    place = f"{inbox}/{client}"
    try:
        draft.mkdir(parents=True)
        with open_inside(inbox, f"{client}/{file}") as rows:
            _copy_rows(rows, draft / ROWS, most)
        _copy_pictures(inbox / client, _lines_by_image(draft / ROWS), draft, most)
    except DeliveryError as error:
        raise DeliveryError(f"{place}: {error}") from None
    except TooLarge as error:
        reason = f"{error}; deliver it in parts, or change nightly.delivery in params.yaml"
    except Stray as error:
        reason = f"it is {error}; nothing outside the inbox is read; put the file itself there"
    except OSError as error:
        reason = f"{error.strerror}; correct that, it is tried again"
    else:
        return
    raise DeliveryError(f"{place}: cannot be copied to the archive: {reason}")


def _copy_rows(source: BinaryIO, target: Path, most: Bounds) -> None:
    """Copy the rows byte for byte; raises ``TooLarge`` as soon as they are."""
    size = 0
    with target.open("xb") as file:
        for number, line in enumerate(bounded_lines(source, most.line_bytes), 1):
            size += len(line)
            if number > most.rows:
                raise TooLarge(f"more than {most.rows} rows")
            if size > most.rows_bytes:
                raise TooLarge(f"more than {most.rows_bytes} bytes of rows")
            file.write(line)


def _copy_pictures(folder: Path, named: dict[str, int], draft: Path, most: Bounds) -> None:
    """Copy the pictures that are there to the same paths below ``draft``."""
    if len(named) > most.pictures:
        raise TooLarge(f"its rows name {len(named)} pictures, more than {most.pictures}")
    size, area = most.pictures_bytes, most.pictures_pixels  # that are left
    for image, line in named.items():
        taken = image.partition("/")[0]
        if taken.removesuffix(DRAFT) in (ROWS, QUARANTINE, RECORD):
            raise DeliveryError(f"line {line}: a picture is named {taken}, which the archive uses; give it another name")
        try:
            size -= _copy_picture(folder, image, line, draft, min(size, most.picture_bytes))
        except ABSENT:
            continue
        except Stray as error:
            raise Stray(f"{error} that line {line} names") from None
        except TooLarge as error:
            raise TooLarge(f"the picture of line {line} has {error}, or all have more than {most.pictures_bytes}") from None
        area -= _area(draft / image)
        if area < 0:
            raise DeliveryError(f"line {line}: with its picture all have more than {most.pictures_pixels} pixels")


def _copy_picture(folder: Path, image: str, line: int, draft: Path, most: int) -> int:
    """Copy one picture; returns its bytes."""
    with open_inside(folder.parent, f"{folder.name}/{image}") as picture:
        # what it is called must mean nothing to DVC or git, which look for names such as dvc.yaml and .gitignore
        if not image.lower().endswith(SUFFIXES) or any(part.startswith(".") for part in image.split("/")):
            fit = f"must end with one of {', '.join(SUFFIXES)}, and no part begin with a dot"
            raise DeliveryError(f"line {line}: a picture's name {fit}")
        (draft / image).parent.mkdir(parents=True, exist_ok=True)
        return copy_bounded(picture, draft / image, most)


def _area(picture: Path) -> int:
    """Pixels by the picture's header; 0 for what is no picture, which the checks of its row will say."""
    try:
        with pictures.opened(picture) as image:
            return image.width * image.height
    except Exception:  # decoders raise whatever a broken file provokes
        return 0


def _lines_by_image(rows: Path) -> dict[str, int]:
    """Images that the lines name, as paths inside the delivery's folder, sorted, each with the first line that names it.

    Lines that cannot be read name none.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(rows.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if image := _image_of(line):
            found.setdefault(image, number)
    return dict(sorted(found.items()))


def _image_of(line: bytes) -> str:
    """The picture that a line names, as a path inside its folder; empty where it names none, or one outside."""
    try:
        values = from_json(line)
    except ValueError:
        return ""
    image = values.get("image") if isinstance(values, dict) else None
    if not isinstance(image, str) or not image or "\0" in image or pictures.leaves(image):
        return ""
    plain = os.path.normpath(image)
    return "" if plain == "." else plain


def content_digest(folder: Path) -> str:
    """SHA-256 of the rows and of every image that they name below ``folder``, a copy of our own."""
    digest = hashlib.sha256((folder / ROWS).read_bytes())
    for image in _lines_by_image(folder / ROWS):
        content = "missing"
        with suppress(*ABSENT, Stray), open_inside(folder, image) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        digest.update(f"\n{image}\n{content}".encode())
    return digest.hexdigest()


def clear_inbox(inbox: Path, delivery: Delivery, most: Bounds) -> None:
    """Remove what the archive holds, but no image that another file there names, and no other delivery of the same name."""
    home, images = delivery.client, _lines_by_image(delivery.folder / ROWS)
    try:
        whole = _same(inbox, f"{home}/{delivery.file}", delivery.folder, ROWS)
        if whole and all(_alike(inbox, f"{home}/{image}", delivery.folder, image) for image in images):
            remove_inside(inbox, f"{home}/{delivery.file}")
        needed = _needed_images(inbox, home, most)
        for image in images:
            if needed is not None and image not in needed and _same(inbox, f"{home}/{image}", delivery.folder, image):
                remove_inside(inbox, f"{home}/{image}")
    except (OSError, Stray) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is {error} now"
        raise DeliveryError(f"{inbox}/{home}: cannot be removed from the inbox: {reason}; make the folder writable") from None


def _needed_images(inbox: Path, client: str, most: Bounds) -> set[str] | None:
    """Pictures that files there name, also those still being written; None where one is too large to say."""
    found: set[str] = set()
    for name in visible_names(inbox.resolve() / client):
        if Path(name).suffix not in WRITTEN:
            continue
        try:
            with open_inside(inbox, f"{client}/{name}") as file:
                for number, line in enumerate(bounded_lines(file, most.line_bytes), 1):
                    if number > most.rows:
                        return None
                    found.add(_image_of(line.removeprefix(codecs.BOM_UTF8)))
        except TooLarge:
            return None
        except (*ABSENT, Stray):
            continue
    return found


def _same(inbox: Path, name: str, folder: Path, kept: str) -> bool:
    """Whether a file of the inbox and one of the archive hold the same bytes; False where one is not there or is no file."""
    with suppress(*ABSENT, Stray), open_inside(inbox, name) as one, open_inside(folder, kept) as other:
        while (chunk := one.read(CHUNK)) == other.read(CHUNK):
            if not chunk:
                return True
    return False


def _alike(inbox: Path, name: str, folder: Path, kept: str) -> bool:
    """Whether both are the same, or neither is there."""
    return _same(inbox, name, folder, kept) or not (_is_there(inbox, name) or _is_there(folder, kept))


def _is_there(root: Path, name: str) -> bool:
    with suppress(*ABSENT, Stray), open_inside(root, name):
        return True
    return False
