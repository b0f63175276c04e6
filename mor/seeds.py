"""Randomness by name: every stream is derived from ``(seed, stage, client, round, ...)`` and passed in.

Two streams with different names are independent, and adding a client or a stage changes no other's stream.
"""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """A generator for this seed and these names."""
    keys = [name if isinstance(name, int) else zlib.crc32(name.encode()) for name in names]
    return np.random.default_rng([seed, *keys])


def integer(seed: int, *names: str | int) -> int:
    """A seed below 2**31 for libraries that take one number."""
    return int(stream(seed, *names).integers(2**31))
