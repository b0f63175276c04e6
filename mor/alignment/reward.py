"""The mixed reward as a TRL reward callable.

For completion i of a prompt x, over the clients k that answered,

    r_i = sum_k w_k(x) z_ki / sum_k w_k(x),     w from the router, z the client's standardised score.

A completion that no weighted client can score is ``None``, never 0. A client that fails is recorded and left out, and
the weights are renormalised; fewer clients than the quorum raise ``QuorumError`` and the round pauses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mor.config import Unavailable
from mor.federation.client import ClientError, RemoteClient
from mor.rewards.calibration import standardise_groups
from mor.routing.router import select


class QuorumError(Unavailable, RuntimeError):
    """Too few clients answered; the last checkpoint is saved and the round can go on later."""


@dataclass(frozen=True)
class PublicPrompt:
    """One public prompt with its image and the router's weights for it, shape (clients,), rows sum to 1."""

    id: str
    text: str
    image: Image.Image
    category: str | None
    weights: NDArray[np.float64]


def ask_clients(
    clients: Sequence[RemoteClient], prompts: Sequence[PublicPrompt], completions: Sequence[str], asked: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores (N, clients), NaN where not asked or unscorable, and which clients are present, shape (clients,).

    ``asked`` (N, clients) says whose opinion is wanted; a client that is never wanted counts as present.
    """
    scores = np.full(asked.shape, np.nan)
    present = np.ones(len(clients), dtype=bool)
    for k, client in enumerate(clients):
        rows = np.flatnonzero(asked[:, k])
        if not len(rows):
            continue
        try:
            values = client.score(
                [prompts[i].text for i in rows.tolist()],
                [prompts[i].image for i in rows.tolist()],
                [completions[i] for i in rows.tolist()],
            )
        except ClientError:
            present[k] = False
            continue
        scores[rows, k] = [np.nan if value is None else value for value in values]
    return scores, present


# (standardised scores (N, K), weights (N, K), scores on the clients' own scales (N, K), rows in a group) -> (N,)
Mixture = Callable[[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int], NDArray[np.float64]]


def mix(
    scores: NDArray[np.float64], weights: NDArray[np.float64], raw: NDArray[np.float64] | None = None, size: int = 1
) -> NDArray[np.float64]:
    """Weighted mean over the clients that have a score, (N, K) x (N, K) -> (N,); NaN where no weighted client has one.

    ``raw`` and ``size`` are there for other mixtures and change nothing here.
    """
    usable = np.where(np.isfinite(scores), weights, 0.0)
    total = usable.sum(axis=1)
    mixed = (usable * np.where(np.isfinite(scores), scores, 0.0)).sum(axis=1)
    return np.where(total > 0, mixed / np.where(total > 0, total, 1.0), np.nan)


@dataclass
class MixedReward:
    """Callable ``(prompts, completions, id, ...) -> rewards``; picklable, usable without a trainer.

    ``generations`` consecutive completions form a group. ``absent`` counts a client's failures by name.
    """

    clients: Sequence[RemoteClient]
    prompts: Mapping[str, PublicPrompt]
    generations: int
    calibration: Literal["group", "reference"] = "group"
    top_k: int = 0
    least: float = 0.0
    quorum: int = 1
    mixture: Mixture = mix
    absent: dict[str, int] = field(default_factory=dict)

    __name__ = "mixed_reward"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        id: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float | None]:
        rows = [self.prompts[name] for name in id]
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        weights = torch.from_numpy(np.stack([row.weights for row in rows]))
        wanted = select(weights, top_k=self.top_k, least=self.least)
        scores, present = ask_clients(self.clients, rows, texts, wanted.numpy() > 0)
        self._record(present)
        if not present.all():  # whose first choice is absent, asks the next best
            wanted = select(weights, top_k=self.top_k, least=self.least, present=torch.from_numpy(present))
            missing = (wanted.numpy() > 0) & ~np.isfinite(scores) & present
            more = ask_clients(self.clients, rows, texts, missing)[0]
            scores = np.where(missing, more, scores)
        raw = scores.copy()
        if self.calibration == "group":
            for k in range(scores.shape[1]):
                scores[:, k] = standardise_groups(scores[:, k], self.generations)
        mixed = self.mixture(scores, wanted.numpy(), raw, self.generations)
        if log_metric is not None:
            self._log(log_metric, raw, wanted.numpy())
        return [float(value) if np.isfinite(value) else None for value in mixed]

    def _record(self, present: NDArray[np.bool_]) -> None:
        for client, here in zip(self.clients, present, strict=True):
            if not here:
                self.absent[client.name] = self.absent.get(client.name, 0) + 1
        if present.sum() < min(self.quorum, len(self.clients)):
            missing = ", ".join(client.name for client, here in zip(self.clients, present, strict=True) if not here)
            raise QuorumError(
                f"{int(present.sum())} of {len(self.clients)} clients answered, the quorum is {self.quorum}; "
                f"no answer from {missing}. Bring them back and run `dvc repro` again: it goes on from the last checkpoint."
            )

    def _log(self, log_metric: Callable[[str, float], None], scores: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        mixed = mix(scores, weights)  # on the clients' own scales: standardised in groups, the mean would always be 0
        if np.isfinite(mixed).any():
            log_metric("mixed_score", float(np.nanmean(mixed)))
        for k, client in enumerate(self.clients):
            log_metric(f"weight/{client.name}", float(weights[:, k].mean()))
            if np.isfinite(scores[:, k]).any():
                log_metric(f"score/{client.name}", float(np.nanmean(scores[:, k])))
