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
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mor.alignment.mixtures import Mixture, weighted_mean
from mor.data.public import PublicPrompt
from mor.federation.quorum import ask, require_quorum
from mor.federation.remote import ClientError, RemoteClient
from mor.rewards.calibration import standardise_groups
from mor.routing.router import select


def ask_clients(
    clients: Sequence[RemoteClient], prompts: Sequence[PublicPrompt], completions: Sequence[str], asked: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], dict[str, str]]:
    """Scores (N, clients), NaN where not asked or unscorable, and why clients that were asked did not answer, by name.

    ``asked`` (N, clients) says whose opinion is wanted.
    """
    rows = {client.name: np.flatnonzero(asked[:, k]).tolist() for k, client in enumerate(clients)}

    def score(client: RemoteClient) -> list[float | None]:
        own = rows[client.name]
        values = client.score([prompts[i].text for i in own], [prompts[i].image for i in own], [completions[i] for i in own])
        if all(value is None for value in values):
            raise ClientError(f"client {client.name}: it could score none of {len(values)} completions")
        return values

    answers, failures = ask([client for client in clients if rows[client.name]], score)
    scores = np.full(asked.shape, np.nan)
    for k, client in enumerate(clients):
        if client.name in answers:
            scores[rows[client.name], k] = [np.nan if value is None else value for value in answers[client.name]]
    return scores, failures


MOST_DEVIATIONS = 10.0  # of a score from its client's mean, where scores are not standardised in groups


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
    mixture: Mixture = weighted_mean
    absent: dict[str, int] = field(default_factory=dict)

    __name__ = "mixed_reward"

    @cached_property
    def trusted(self) -> list[RemoteClient]:
        """The clients that have a weight on some prompt."""
        largest = np.max([row.weights for row in self.prompts.values()], axis=0)
        return [client for client, weight in zip(self.clients, largest, strict=True) if weight > 0]

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
        require_quorum(self.trusted, failures, self.quorum, unasked)
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
        mixed = weighted_mean(scores, weights)  # on the clients' own scales: standardised in groups, the mean would always be 0
        if np.isfinite(mixed).any():
            log_metric("mixed_score", float(np.nanmean(mixed)))
        for k, client in enumerate(self.clients):
            log_metric(f"weight/{client.name}", float(weights[:, k].mean()))
            if np.isfinite(scores[:, k]).any():
                log_metric(f"score/{client.name}", float(np.nanmean(scores[:, k])))
