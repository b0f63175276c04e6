"""What callers of a served model may send: so many rows, so long texts, so large pictures, and errors that name the row.

A served model answers whoever reaches it, so every size is bounded before work is done, and the text of an error repeats
nothing of what was sent. Rows are counted from 0, as in the caller's table.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mor.federation.messages import image_from_bytes

ROWS = 1000  # a call
CHARACTERS = 20_000  # of a prompt or a completion
ENCODED = 100_000_000  # characters of a picture in base64
PIXELS = 2**28  # of a call's pictures together: 16 of 4096 x 4096, 1000 of 512 x 512


def texts(column: str, given: Sequence[Any]) -> list[str]:
    """The texts of a column; raises ``ValueError`` for too many, too long ones and what is no text."""
    if len(given) > ROWS:
        raise ValueError(f"got {len(given)} rows, at most {ROWS} are answered in a call; send them in parts")
    for row, text in enumerate(given):
        if not isinstance(text, str):
            raise ValueError(f"row {row}: {column} is a {type(text).__name__}, expected a text")
        if len(text) > CHARACTERS:
            raise ValueError(f"row {row}: {column} has {len(text)} characters, at most {CHARACTERS} are read; shorten it")
    return list(given)


def pictures(given: Sequence[Any]) -> list[Image.Image]:
    """RGB images of base64 texts; raises ``ValueError`` for too many or too large ones and what is no picture."""
    if len(given) > ROWS:
        raise ValueError(f"got {len(given)} rows, at most {ROWS} are answered in a call; send them in parts")
    found: list[Image.Image] = []
    pixels = 0
    for row, text in enumerate(given):
        found.append(_picture(row, text))
        pixels += found[-1].width * found[-1].height
        if pixels > PIXELS:
            raise ValueError(f"row {row}: the pictures up to here have {pixels} pixels, at most {PIXELS} a call; send fewer")
    return found


def _picture(row: int, text: Any) -> Image.Image:
    if not isinstance(text, str):
        raise ValueError(f"row {row}: image is a {type(text).__name__}, expected base64 of a PNG")
    if len(text) > ENCODED:
        raise ValueError(f"row {row}: image has {len(text)} characters of base64, at most {ENCODED} are read; shrink it")
    try:
        return image_from_bytes(b64decode(text, validate=True))
    except binascii.Error:
        raise ValueError(f"row {row}: image is no base64; expected that of a PNG") from None
    except Exception as error:  # decoders raise what they please on a stranger's bytes
        raise ValueError(f"row {row}: image cannot be read as a picture ({type(error).__name__}); send a PNG") from None
