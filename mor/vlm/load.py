"""Load any Hugging Face vision-language model by hub id or folder; run prompts through it in batches.

A prompt is one user turn: the image, then the question. ``Vlm`` bundles a model with its processor and offers the
three things the method needs: log-probabilities of answers, pooled prompt states, and greedy or sampled answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar

from mor.config import UserError

disable_progress_bar()  # of reading weights files; a second for a large model, noise for a small one

_TORCHVISION_HINT = "its image processor needs torchvision: install the gpu extra (`pip install -e .[gpu]`)"


class ModelError(UserError, RuntimeError):
    """A model cannot be loaded; the message names it and the fix."""


def load_processor(source: str) -> Any:
    """The processor of a hub id or folder, padding on the left; raises ``ModelError``."""
    try:
        processor = AutoProcessor.from_pretrained(source)
    except ImportError as error:
        hint = _TORCHVISION_HINT if "torchvision" in str(error).lower() else str(error)
        raise ModelError(f"{source}: {hint}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: no processor there: {error}; expected a hub id or a Hugging Face folder") from error
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def load_model(source: str) -> Any:
    """The model of a hub id or folder in float32 (its own dtype where CUDA is there); raises ``ModelError``."""
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    try:
        return AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: cannot load: {error}; expected a hub id or a Hugging Face folder") from error


def chat(prompt: str) -> list[dict[str, Any]]:
    """One user turn about one image in the common chat format."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]


def batches(n: int, size: int) -> Iterator[slice]:
    """Slices that cut ``n`` rows into batches of at most ``size``."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@dataclass(frozen=True)
class Vlm:
    """A model with its processor; ``model`` may be a PEFT model."""

    model: Any
    processor: Any
    batch_size: int = 100

    @classmethod
    def load(cls, source: str, batch_size: int = 100) -> Vlm:
        model = load_model(source)
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), load_processor(source), batch_size)

    def encode_prompts(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Left-padded prompt batch with the image tensors, on the model's device."""
        texts = self.processor.apply_chat_template([chat(p) for p in prompts], tokenize=False, add_generation_prompt=True)
        batch = self.processor(
            text=texts, images=[[i] for i in images], padding=True, return_tensors="pt", add_special_tokens=False
        )
        return {key: value.to(self.model.device) for key, value in batch.items()}

    def encode_answers(
        self, prompts: Sequence[str], images: Sequence[Image.Image], answers: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Prompt and answer in one batch, the answer closed by EOS; returns it with the answers' token mask (B, T)."""
        batch = self.encode_prompts(prompts, images)
        tokenizer = self.processor.tokenizer
        said = tokenizer(
            [answer + tokenizer.eos_token for answer in answers],
            padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False,
        ).to(self.model.device)  # fmt: skip
        mask = torch.cat([torch.zeros_like(batch["attention_mask"]), said["attention_mask"]], dim=1)
        for key, tail in (("input_ids", said["input_ids"]), ("attention_mask", said["attention_mask"])):
            batch[key] = torch.cat([batch[key], tail], dim=1)
        for key in ("token_type_ids", "mm_token_type_ids"):
            if key in batch:
                batch[key] = torch.cat([batch[key], torch.zeros_like(said["input_ids"])], dim=1)
        return batch, mask

    @torch.inference_mode()
    def answer_log_probs(self, prompts: Sequence[str], images: Sequence[Image.Image], answers: Sequence[str]) -> torch.Tensor:
        """log p(answer, EOS | image, prompt) in nats, summed over tokens, shape (B,)."""
        parts = []
        for rows in batches(len(prompts), self.batch_size):
            batch, mask = self.encode_answers(prompts[rows], images[rows], answers[rows])
            length = int(mask.sum(dim=1).max())
            logits = self.model(**batch, logits_to_keep=length + 1).logits[:, :-1].float()
            picked = logits.gather(2, batch["input_ids"][:, -length:, None])[..., 0] - logits.logsumexp(dim=-1)
            parts.append((picked * mask[:, -length:]).sum(dim=1).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def prompt_states(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> torch.Tensor:
        """The last hidden states, averaged over the prompt's tokens, shape (B, hidden)."""
        parts = []
        for rows in batches(len(prompts), self.batch_size):
            batch = self.encode_prompts(prompts[rows], images[rows])
            states = self.model(**batch, output_hidden_states=True, logits_to_keep=1).hidden_states[-1].float()
            weights = batch["attention_mask"][..., None].float()
            parts.append(((states * weights).sum(1) / weights.sum(1)).cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def answer(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image],
        max_new_tokens: int,
        *,
        temperature: float | None = None,
    ) -> list[str]:
        """One answer a prompt: greedy, or sampled at ``temperature`` from torch's global generator."""
        sampling = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature, "top_k": 0}
        texts: list[str] = []
        for rows in batches(len(prompts), self.batch_size):
            batch = self.encode_prompts(prompts[rows], images[rows])
            out = self.model.generate(**batch, max_new_tokens=max_new_tokens, **sampling)
            texts += self.processor.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts
