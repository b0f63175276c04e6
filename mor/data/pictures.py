"""Pictures of others: decoded only as one of a few formats, only up to a size, and without what is beside their pixels.

A picture's header says how large it is before anything is decoded, so that a small file cannot ask for gigabytes of memory;
formats whose decoders start other programs or read other files are never tried. Comments, EXIF and colour profiles are
dropped: what is computed from, shown or sent is pixels.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, get_args

from PIL import Image, UnidentifiedImageError

from mor.config import MOST_SIDE, ImageFormat

MOST_SCANS = 64  # of a JPEG; a progressive one has about ten, and its thumbnail one
FORMATS: tuple[str, ...] = get_args(ImageFormat)


class PictureError(ValueError):
    """A picture cannot be used; the message holds nothing of the file, not even its name."""


def leaves(image: str) -> bool:
    """Whether a path, taken from its folder, leads out of it."""
    return os.path.isabs(image) or Path(os.path.normpath(image)).parts[:1] == ("..",)  # noqa: PTH117 (links stay as they are)


@contextmanager
def opened(file: Path, formats: Collection[str] = FORMATS) -> Iterator[Image.Image]:
    """The picture with its header read and nothing decoded. Raises what Pillow raises, ``OSError`` or ``PictureError``."""
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle, warnings.catch_warnings():
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):  # a pipe would keep us waiting
            raise PictureError("no ordinary file")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the side is bounded before anything is decoded
        with Image.open(handle, formats=list(formats)) as image:
            if image.format == "JPEG":
                check_scans(handle)
            yield image


def check_scans(handle: BinaryIO) -> None:
    """Raise ``PictureError`` for a JPEG of more than ``MOST_SCANS`` scans: a few bytes of one cost a pass over all pixels."""
    place = handle.tell()
    handle.seek(0)
    scans, last = 0, b""
    while part := handle.read(1 << 20):
        scans += (last + part).count(b"\xff\xda")
        last = part[-1:]
    handle.seek(place)
    if scans > MOST_SCANS:
        raise PictureError(f"a JPEG of more than {MOST_SCANS} scans")


def pixels(image: Image.Image, most_side: int = MOST_SIDE) -> Image.Image:
    """The pixels of an opened picture as RGB, and nothing else; raises ``PictureError`` where a side is too long."""
    size = image.size
    if max(size) > most_side:
        raise PictureError(f"{size[0]} x {size[1]} pixels, at most {most_side} a side")
    plain = image.convert("RGB")
    if plain.size != size:
        raise PictureError("another size than its header says")
    plain.info = {}
    return plain


def png_bytes(image: Image.Image) -> bytes:
    """The image's pixels as PNG, lossless, so that every reader sees the same; what else its file held stays behind."""
    buffer = BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(buffer, format="PNG")
    return buffer.getvalue()


def why(error: Exception) -> str:
    """What may be said of a picture that could not be read."""
    if isinstance(error, PictureError):
        return str(error)
    return f"{type(error).__name__}{': of no known format' if isinstance(error, UnidentifiedImageError) else ''}"
