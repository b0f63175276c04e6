"""GRPO's log-probabilities with every prompt computed once instead of once a completion.

A group's completions answer one prompt with one image, and the prompt with its image tokens is several times as long as
an answer. Here each distinct prompt passes through the model once; its key-value cache is then repeated for the
completions, which gradients flow through. The numbers are those of TRL's own method up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import GRPOTrainer

from mor.vlm.progress import ResumableTrainer


class SharedPromptTrainer(ResumableTrainer, GRPOTrainer):
    """``GRPOTrainer`` for one image a prompt, fed as ``pixel_values`` alone (LLaVA's way); others take TRL's own path."""

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        pixel_values: torch.Tensor | None = None,
        num_images: list[int] | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        plain = pixel_values is not None and len(pixel_values) == len(input_ids) and not compute_aux_loss
        if not plain or any(value is not None for value in others.values()):
            return super()._get_per_token_logps_and_entropies(  # type: ignore[no-any-return]
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss,
                pixel_values=pixel_values, num_images=num_images, **others,
            )  # fmt: skip
        assert pixel_values is not None
        prompts, answers = input_ids[:, :-logits_to_keep], input_ids[:, -logits_to_keep:]
        first, group = distinct(prompts, pixel_values)
        with self.accelerator.autocast():
            begun = model(
                input_ids=prompts[first], attention_mask=attention_mask[first, :-logits_to_keep],
                pixel_values=pixel_values[first], use_cache=True, logits_to_keep=1,
            )  # fmt: skip
            cache = begun.past_key_values
            cache.batch_select_indices(group)
            rest = model(
                input_ids=answers[:, :-1], attention_mask=attention_mask[:, :-1], past_key_values=cache, use_cache=True
            )
        logits = torch.cat([begun.logits[group, -1:], rest.logits], dim=1).float() / self.temperature
        mask = attention_mask[:, -logits_to_keep:]
        log_probs = logits.log_softmax(dim=-1)
        picked = log_probs.gather(2, answers[..., None])[..., 0] * mask
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1) * mask if compute_entropy else None
        return picked, entropies, None


def distinct(prompts: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the first of each distinct prompt with its image, shape (U,), and which of them each row is, shape (B,)."""
    rows = zip(prompts.cpu().numpy(), images.cpu().numpy(), strict=True)
    keys = [prompt.tobytes() + image.tobytes() for prompt, image in rows]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    first = [keys.index(key) for key in number]
    return torch.tensor(first, device=prompts.device), torch.tensor([number[key] for key in keys], device=prompts.device)
