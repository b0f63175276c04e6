"""Reward models behind one contract: ``score(prompts, images, completions) -> one float or None each``.

Two kinds:

- ``ImplicitReward``: the client's VLM tuned by DPO scores ``r(x, y) = log pi(y|x) - log pi_ref(y|x)``
  (Rafailov et al. 2023, "Direct Preference Optimization", eq. 5, up to the factor beta), with a floor;
- ``HeadReward``: a two-layer head on the last hidden state of the answer's last token.

Scores are standardised by the client's own calibration, so that they arrive with mean 0 and deviation 1 on its data.
``None`` means unscorable (a non-finite score); it is never turned into 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from PIL import Image
from torch import nn

from mor.data.schema import Preference
from mor.rewards.calibration import Calibration
from mor.vlm.load import Vlm, batches


class RewardModel(Protocol):
    """What a client's critic does; nothing else about it is visible."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over everything that moves a score."""

    def score(
        self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]
    ) -> list[float | None]: ...


class Scorer(Protocol):
    """Uncalibrated scores, shape (B,)."""

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> torch.Tensor: ...


class ImplicitReward:
    """log pi(y|x) - max(log pi_ref(y|x), -floor) in nats.

    The floor is our departure from DPO. To text that both models find impossible the plain ratio gives any value at
    all, and a policy soon finds the garbage that it rates highest. With the floor, what the reference finds less likely
    than e^-floor is judged by the tuned model's own probability, and garbage is worth nothing.
    """

    def __init__(self, tuned: Vlm, reference: Vlm, floor: float = math.inf) -> None:
        self.tuned, self.reference, self.floor = tuned, reference, floor

    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> torch.Tensor:
        reference = self.reference.answer_log_probs(prompts, images, completions).clamp_min(-self.floor)
        return self.tuned.answer_log_probs(prompts, images, completions) - reference


class ScalarHead(nn.Module):
    """Two layers on a hidden state: (B, hidden) -> (B,)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(states)[..., 0]
        return scores


def last_answer_state(vlm: Vlm, batch: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Hidden state at each answer's last token, shape (B, hidden)."""
    states: torch.Tensor = vlm.model(**batch, output_hidden_states=True, logits_to_keep=1).hidden_states[-1].float()
    last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return states[torch.arange(len(last)), last]


class HeadReward:
    """A scalar head on the backbone."""

    def __init__(self, vlm: Vlm, head: ScalarHead) -> None:
        self.vlm, self.head = vlm, head.eval()

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> torch.Tensor:
        parts = []
        for rows in batches(len(prompts), self.vlm.batch_size):
            with self.vlm.alone:
                batch, mask = self.vlm.encode_answers(prompts[rows], images[rows], completions[rows])
                states = last_answer_state(self.vlm, batch, mask)
            parts.append(self.head(states).cpu())
        return torch.cat(parts)


class CalibratedReward:
    """A scorer with its calibration; asks each distinct (prompt, image, completion) only once."""

    def __init__(self, scorer: Scorer, calibration: Calibration, fingerprint: str) -> None:
        self.scorer, self.calibration, self.fingerprint = scorer, calibration, fingerprint

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> list[float | None]:
        if not len(prompts) == len(images) == len(completions):
            raise ValueError(f"got {len(prompts)} prompts, {len(images)} images, {len(completions)} completions")
        keys = [(p, id(i), c) for p, i, c in zip(prompts, images, completions, strict=True)]
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        asked = sorted(first.values())
        if not asked:
            return []
        raw = self.scorer([prompts[i] for i in asked], [images[i] for i in asked], [completions[i] for i in asked])
        values = dict(zip((keys[i] for i in asked), self.calibration.apply(raw).tolist(), strict=True))
        return [values[key] if math.isfinite(values[key]) else None for key in keys]


def ranked_rightly(model: RewardModel, pairs: Sequence[Preference], images: Sequence[Image.Image]) -> list[bool]:
    """Whether the reward model ranks each pair as its annotator does; not where it can score only one of the two."""
    prompts = [pair.prompt for pair in pairs]
    chosen = model.score(prompts, images, [pair.chosen for pair in pairs])
    rejected = model.score(prompts, images, [pair.rejected for pair in pairs])
    return [c is not None and r is not None and c > r for c, r in zip(chosen, rejected, strict=True)]
