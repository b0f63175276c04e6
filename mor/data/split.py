"""Which of a client's pairs its reward model learns from, and which are kept back."""

from __future__ import annotations

from collections.abc import Sequence

from mor.data.schema import Preference
from mor.seeds import stream


def split_pairs(pairs: Sequence[Preference], share: float, seed: int, client: str) -> tuple[list[Preference], list[Preference]]:
    """Pairs for training, and the ``share`` of them, at least one, kept back for calibration and the router."""
    order = stream(seed, "split", client).permutation(len(pairs))
    kept = max(1, round(share * len(pairs)))
    return [pairs[i] for i in order[kept:]], [pairs[i] for i in order[:kept]]
