"""The mixed reward as a TRL reward callable.

For completion i of a prompt x, over the clients k that answered,

    r_i = sum_k w_k(x) z_ki / sum_k w_k(x),     w from the router, z the client's standardised score.

A client that fails is recorded and left out, and the weights are renormalised. Where those that scored a completion hold less
than ``coverage`` of its prompt's weight it is ``None``, never 0: nobody judges in an absent expert's place. Fewer clients
than the quorum raise ``QuorumError`` and the round pauses; who has no weight on any prompt does not count there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mor.federation.quorum import require_quorum
from mor.federation.remote import ClientError, RemoteClient
from mor.rewards.calibration import standardise_groups
from mor.routing.router import select


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
) -> tuple[NDArray[np.float64], dict[str, str]]:
    """Scores (N, clients), NaN where not asked or unscorable, and why clients that were asked did not answer, by name.

    ``asked`` (N, clients) says whose opinion is wanted.
    """
    scores = np.full(asked.shape, np.nan)
    failures: dict[str, str] = {}
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
        except ClientError as error:
            failures[client.name] = str(error)
            continue
        if all(value is None for value in values):
            failures[client.name] = f"client {client.name}: it could score none of {len(values)} completions"
            continue
        scores[rows, k] = [np.nan if value is None else value for value in values]
    return scores, failures


MOST_DEVIATIONS = 10.0  # of a score from its client's mean, where scores are not standardised in groups

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
    coverage: float = 0.5
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
        asked = wanted.numpy() > 0
        scores, failures = ask_clients(self.clients, rows, texts, asked)
        for name in failures:
            self.absent[name] = self.absent.get(name, 0) + 1
        unasked = [client.name for k, client in enumerate(self.clients) if not asked[:, k].any()]
        trusted = [client for k, client in enumerate(self.clients) if any(row.weights[k] > 0 for row in self.prompts.values())]
        require_quorum(trusted, failures, self.quorum, unasked)
        if self.calibration == "reference":  # who is a thousand deviations from its own mean does not count a thousandfold
            scores = np.clip(scores, -MOST_DEVIATIONS, MOST_DEVIATIONS)
        raw = scores.copy()
        if self.calibration == "group":
            for k in range(scores.shape[1]):
                scores[:, k] = standardise_groups(scores[:, k], self.generations)
        mixed = self.mixture(scores, wanted.numpy(), raw, self.generations)
        mixed[(wanted.numpy() * np.isfinite(raw)).sum(axis=1) < self.coverage - 1e-6] = np.nan
        if log_metric is not None:
            self._log(log_metric, raw, wanted.numpy())
        return [float(value) if np.isfinite(value) else None for value in mixed]

    def _log(self, log_metric: Callable[[str, float], None], scores: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        mixed = mix(scores, weights)  # on the clients' own scales: standardised in groups, the mean would always be 0
        if np.isfinite(mixed).any():
            log_metric("mixed_score", float(np.nanmean(mixed)))
        for k, client in enumerate(self.clients):
            log_metric(f"weight/{client.name}", float(weights[:, k].mean()))
            if np.isfinite(scores[:, k]).any():
                log_metric(f"score/{client.name}", float(np.nanmean(scores[:, k])))
