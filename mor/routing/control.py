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

from mor.errors import UserError
from mor.federation.quorum import QuorumError, ask, require_quorum
from mor.federation.remote import RemoteClient
from mor.federation.server import Server
from mor.routing.router import Router
from mor.seeds import stream
from mor.vlm.load import Vlm

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


def control_clients(router: Router, server: Server, base: Vlm) -> tuple[dict[str, Share], list[str], dict[str, str]]:
    """Ask the control questions; returns each client's share of fitting answers, who failed, and why others were silent.

    Where every client fails, the base must be no judge, and nobody did. That is not known where some were silent or are out
    already: then it raises ``QuorumError`` or ``UserError``. Raises ``QuorumError`` below the quorum too.
    """
    settings, prompts = server.settings, server.prompts
    budget, rng = min(settings.router.control, len(prompts)), stream(settings.seed, "control", str(len(router.excluded)))
    asked = [client for client, lost in zip(server.clients, router.lost, strict=True) if not lost]
    pool = rng.choice(len(prompts), size=min(len(prompts), 2 * budget * len(router.clients)), replace=False).tolist()
    texts, images = [prompts[i].text for i in pool], [prompts[i].image for i in pool]
    answers = base.answer(texts, images, settings.grpo.max_completion_tokens)
    weights = router.weights(server.features[pool]).double().numpy()
    columns = [router.clients.index(client.name) for client in asked]
    shares, silent = control_shares(asked, weights[:, columns], texts, images, answers, budget, rng)
    require_quorum(asked, silent, settings.grpo.quorum)
    judged = {name: share for name, share in shares.items() if share.questions}
    failed = [name for name, share in judged.items() if share.not_above_chance]
    if len(failed) == len(judged):
        _nobody_passed(failed, list(silent), router.excluded)
        failed = []
    return shares, failed, silent


def _nobody_passed(failed: Sequence[str], silent: Sequence[str], excluded: Sequence[str]) -> None:
    """Raise ``QuorumError`` or ``UserError`` where it is not known whether the base is no judge, or the clients are bad."""
    if not failed or not (silent or excluded):
        return
    told = f"nobody who answers the control questions passes them ({', '.join(failed)})"
    if silent:
        raise QuorumError(f"{told}, and {', '.join(silent)} did not answer; bring them back and run `dvc repro` again")
    raise UserError(f"{told}, and {', '.join(excluded)} had no part: no reward model here can be trusted; train them longer")


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
    drawn: dict[str, list[int]] = {}
    questions: dict[str, tuple[list[str], list[Image.Image], list[str]]] = {}
    for k, client in enumerate(clients):
        if not weights[:, k].any():
            continue
        claimed = weights[:, k] / weights[:, k].sum()
        own = rng.choice(len(prompts), size=min(budget, int((claimed > 0).sum())), replace=False, p=claimed).tolist()
        others = [_another(i, prompts, answers, rng) for i in own]
        drawn[client.name] = own
        questions[client.name] = (
            [prompts[i] for i in own] * 2, [images[i] for i in own] * 2, [answers[i] for i in (*own, *others)]
        )  # fmt: skip
    scores, failures = ask([c for c in clients if c.name in drawn], lambda client: client.score(*questions[client.name]))
    shares = {client.name: Share(float("nan"), 0) for client in clients}
    for name, values in scores.items():
        n = len(drawn[name])
        fitting = [a is not None and b is not None and a > b for a, b in zip(values[:n], values[n:], strict=True)]
        shares[name] = Share(float(np.mean(fitting)), n)
    return shares, failures


def _another(i: int, prompts: Sequence[str], answers: Sequence[str], rng: np.random.Generator) -> int:
    """A row with another answer, to the same question as row ``i`` if there is one."""
    differ = [j for j in range(len(prompts)) if answers[j] != answers[i]]
    alike = [j for j in differ if prompts[j] == prompts[i]]
    return int(rng.choice(alike or differ or [i]))
