"""Control questions: does a client that claims prompts prefer answers that fit them?

A fit takes each client's word for what its prompts are and that its reward model ranks rightly, so a hostile or broken client
could claim what it likes. The server checks with what it has, public prompts and the base model, without labels: to a prompt
that the client claims, is the base's own answer preferred to the base's answer to the same question about another image? The
first is right as often as the base is, the second by chance, and neither style nor length tells them apart. A client whose
share of fitting answers is not above chance (one-sided, 97.5 %) is excluded. Crowdsourcing filters its workers so (Le et al.
2010).

What it cannot find is a client that knows right from wrong and lies about style alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mor.federation.remote import ClientError, RemoteClient

Z = 1.96


@dataclass(frozen=True)
class Share:
    """How often a client preferred the fitting answer, of so many questions; NaN of 0 where it claims or says nothing."""

    value: float
    questions: int

    @property
    def not_above_chance(self) -> bool:
        """Whether the share could be chance; False where nothing was asked, for absence is no failure."""
        return self.questions > 0 and self.value <= 0.5 + Z * 0.5 / math.sqrt(self.questions)


def control_shares(
    clients: Sequence[RemoteClient],
    weights: NDArray[np.float64],
    prompts: Sequence[str],
    images: Sequence[Image.Image],
    answers: Sequence[str],
    budget: int,
    rng: np.random.Generator,
) -> tuple[dict[str, Share], dict[str, str]]:
    """Each client's share of control questions on which it prefers the fitting answer, and why others gave no answer.

    ``answers`` are the base's own to the N ``prompts``. A client is asked ``budget`` questions, drawn in proportion to its
    ``weights`` (N, clients).
    """
    shares, failures = {}, {}
    for k, client in enumerate(clients):
        shares[client.name] = Share(float("nan"), 0)
        if not weights[:, k].any():
            continue
        claimed = weights[:, k] / weights[:, k].sum()
        drawn = rng.choice(len(prompts), size=min(budget, int((claimed > 0).sum())), replace=False, p=claimed).tolist()
        others = [_another(i, prompts, answers, rng) for i in drawn]
        texts, pictures = [prompts[i] for i in drawn] * 2, [images[i] for i in drawn] * 2
        try:
            scores = client.score(texts, pictures, [answers[i] for i in (*drawn, *others)])
        except ClientError as error:
            failures[client.name] = str(error)
            continue
        pairs = zip(scores[: len(drawn)], scores[len(drawn) :], strict=True)
        fitting = [a is not None and b is not None and a > b for a, b in pairs]
        shares[client.name] = Share(float(np.mean(fitting)), len(drawn))
    return shares, failures


def _another(i: int, prompts: Sequence[str], answers: Sequence[str], rng: np.random.Generator) -> int:
    """A row with another answer, to the same question as row ``i`` if there is one."""
    differ = [j for j in range(len(prompts)) if answers[j] != answers[i]]
    alike = [j for j in differ if prompts[j] == prompts[i]]
    return int(rng.choice(alike or differ or [i]))
