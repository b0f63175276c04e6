"""The server's public prompts, decoded."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class PublicPrompt:
    """One public prompt with its image; ``category`` matters to the oracle router alone.

    ``weights`` are the router's, shape (clients,), and sum to 1; empty before there is a router.
    """

    id: str
    text: str
    image: Image.Image
    category: str | None = None
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
