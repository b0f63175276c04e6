"""Whether a delivery's new rows drifted from those that its client has, by statistics and by the last reward model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mor.config import Params
from mor.data import pictures
from mor.data.drift import Finding, agreement, differences, image_statistics
from mor.data.schema import Preference, load_images
from mor.seeds import stream
from tasks.nights.deliveries import DeliveryError
from tasks.nights.rows import CheckedRows
from tasks.project import paths
from tasks.tracking.runs import read_lock

if TYPE_CHECKING:
    from mor.rewards.model import RewardModel

MOST_PICTURES = 500  # read on each side for image statistics
MOST_PAIRS = 300  # ranked on each side by the reward model
MOST_PIXELS = 1 << 26  # decoded at a time
Loader = Callable[[str], "RewardModel | None"]


def find_drift(
    params: Params, client: str, folder: Path, rows: CheckedRows, digest: str, load: Loader
) -> tuple[list[Finding], list[str]]:
    """How the new rows in ``folder`` differ from those that the client has, and what could not be judged."""
    limits, home = params.drift, paths.client_folder(client)
    if min(len(rows.fresh), len(rows.known)) < limits.least_rows:
        few = f"drift was not judged: fewer than {limits.least_rows} rows"
        return [], [few] if rows.fresh and rows.known else []
    rng = stream(params.seed, "drift", client, digest)
    had, came = [row.row for row in rows.known], [row.row for row in rows.fresh]
    old = _image_columns(home, _sample(had, MOST_PICTURES, rng))
    new = _image_columns(folder, _sample(came, MOST_PICTURES, rng))
    findings = differences(had, came, (old, new), limits)
    if (model := load(client)) is None:
        return findings, ["drift of preferences was not judged: there is no reward model yet"]
    from tasks.project.clients import pairs_of  # imports torch

    kept_back = pairs_of(params, client)[1]  # that the model was not trained on
    before = _agreements(model, home, _sample(kept_back, MOST_PAIRS, rng))
    after = _agreements(model, folder, _sample(came, MOST_PAIRS, rng))
    if before and after:
        findings.append(agreement(before, after, limits))
    return findings, []


def last_reward_model(client: str) -> RewardModel | None:
    """The reward model that the client's stage left behind, or None for a client that never had one.

    Raises ``DeliveryError`` where there was one and it is away: poisoned pairs must not slip in while it is trained anew.
    """
    folder = paths.reward_folder(client)
    if (folder / "reward.json").exists() and paths.validated_client(client).exists():
        from mor.rewards.kinds import load_reward_model

        return load_reward_model(folder)
    if f"reward@{client}" in (read_lock().get("stages") or {}):
        raise DeliveryError(
            f"{client}: {folder}, to judge preferences with, is in dvc.lock but not on disk; it waits until the stage has run"
            " (or `dvc pull`)"
        )
    return None


def _sample(rows: Sequence[Preference], most: int, rng: np.random.Generator) -> list[Preference]:
    """At most so many of the rows."""
    return list(rows) if len(rows) <= most else [rows[i] for i in sorted(rng.choice(len(rows), most, replace=False))]


def _image_columns(root: Path, rows: Sequence[Preference]) -> dict[str, list[float]]:
    """Statistics of every picture, by name."""
    measured = [image_statistics(load_images(root, [row])[0]) for row in rows]
    return {name: [picture[name] for picture in measured] for name in measured[0]}


def _agreements(model: RewardModel, root: Path, rows: Sequence[Preference]) -> list[bool]:
    """Whether the model ranks each pair as its annotator did; pairs that it cannot score are left out."""
    agreed: list[bool] = []
    for some in _portions(root, rows):
        images, prompts = load_images(root, some), [row.prompt for row in some]
        chosen, rejected = (model.score(prompts, images, [getattr(r, side) for r in some]) for side in ("chosen", "rejected"))
        agreed += [up > down for up, down in zip(chosen, rejected, strict=True) if up is not None and down is not None]
    return agreed


def _portions(root: Path, rows: Sequence[Preference]) -> Iterator[list[Preference]]:
    """The rows in portions whose pictures have no more than ``MOST_PIXELS`` together: few large ones, or all small ones."""
    portion: list[Preference] = []
    held = 0
    for row in rows:
        with pictures.opened(root / row.image) as picture:
            size = picture.width * picture.height
        if portion and held + size > MOST_PIXELS:
            yield portion
            portion, held = [], 0
        portion.append(row)
        held += size
    if portion:
        yield portion
