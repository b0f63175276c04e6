"""Images for pages: figures and pictures as PNG, and PNGs as text that a page can hold."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from mor.data.pictures import opened, pixels, png_bytes

DPI = 200  # figures are 8 inches wide: twice the 800 pixels at which they are read
SIDE = 256  # largest side, in pixels, of a sample's image in a page


def figure_png(figure: Figure, dpi: int = DPI) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def thumbnail(path: Path) -> bytes:
    """An image for a page as PNG: small ones as they are, large ones reduced to ``SIDE`` pixels."""
    with opened(path) as image:
        small = pixels(image)
        small.thumbnail((SIDE, SIDE))
        return png_bytes(small)


def data_uri(png: bytes) -> Markup:
    """A PNG as the source of an image, so that nothing is loaded."""
    return Markup("data:image/png;base64,") + b64encode(png).decode()
