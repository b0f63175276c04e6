"""Pictures on their way to a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mor.errors import UserError
from tasks.tracking import predicting


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "bomb", "folder"])
def test_what_is_no_picture_is_said(damage: str, tmp_path: Path) -> None:
    image = tmp_path / "x.png"
    Image.effect_noise((64, 64), 50).save(image)
    whole = image.read_bytes()
    bomb = b"BM" + (0).to_bytes(8, "little") + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    bomb += (60000).to_bytes(4, "little") * 2 + b"\x01\x00\x18\x00" + bytes(24)
    if damage == "folder":
        image = tmp_path
    else:
        image.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2], "bomb": bomb}[damage])
    with pytest.raises(UserError, match="cannot be read as a picture"):
        predicting.encoded(image)
