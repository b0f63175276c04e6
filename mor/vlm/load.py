"""Load any Hugging Face vision-language model by hub id or folder; run prompts through it in batches.

A prompt is one user turn: the image, then the question. ``Vlm`` bundles a model with its processor and offers the
three things the method needs: log-probabilities of answers, pooled prompt states, and greedy or sampled answers. Any
number of threads may ask at once; prompts and answers are text, whatever marks of a tokenizer they spell.

A hub id is loaded at the revision that it names. Only safetensors are read: a pickle, or a repository's own code, would
run whatever its owner wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import find_adapter_config_file
from transformers.utils.logging import disable_progress_bar

from mor.addresses import split_revision
from mor.errors import UserError
from mor.vlm.plain import PlainText

disable_progress_bar()  # of reading weights files; a second for a large model, noise for a small one

_TORCHVISION_HINT = "its image processor needs torchvision: install the gpu extra (`pip install -e .[gpu]`)"


_EXPECTED = "a Hugging Face folder, or a hub id with its revision (org/name@<commit>)"


class ModelError(UserError, RuntimeError):
    """A model cannot be loaded; the message names it and the fix."""


def load_processor(source: str) -> Any:
    """The processor of a folder or ``org/name@revision``, padding on the left; raises ``ModelError``."""
    where = _located(source)
    try:
        processor = AutoProcessor.from_pretrained(**where)
    except ImportError as error:
        hint = _TORCHVISION_HINT if "torchvision" in str(error).lower() else str(error)
        raise ModelError(f"{source}: {hint}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: no processor there: {error}; expected {_EXPECTED}") from error
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def load_model(source: str) -> Any:
    """The model of a folder or ``org/name@revision`` in float32 (its own dtype where CUDA is there); raises ``ModelError``."""
    dtype, where = "auto" if torch.cuda.is_available() else torch.float32, _located(source)
    try:
        if find_adapter_config_file(where["pretrained_model_name_or_path"], revision=where["revision"]):
            raise ModelError(
                f"{source}: is a PEFT adapter, which would take its base from the hub at no revision; "
                "merge it into its base (`merge_and_unload`) and save that"
            )
        model = AutoModelForImageTextToText.from_pretrained(dtype=dtype, use_safetensors=True, **where)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source}: cannot load: {error}; expected {_EXPECTED}, with safetensors weights") from error
    if where["revision"]:
        model.name_or_path = ""  # by which PEFT would look the base up once more when it saves, at no revision
    return model


def _located(source: str) -> dict[str, Any]:
    """The arguments of every ``from_pretrained`` that say what is loaded; raises ``ModelError`` for a missing folder."""
    name, revision = split_revision(source)
    if revision is None and not Path(name).is_dir():
        raise ModelError(f"{source}: no such folder; expected {_EXPECTED}")
    if revision is not None and Path(name).is_dir():
        raise ModelError(f"{source}: the folder {name} here would be loaded in its place; rename it, or name it as ./{name}")
    return {"pretrained_model_name_or_path": name, "revision": revision, "trust_remote_code": False}


_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
_locks_guard = Lock()


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

    @property
    def alone(self) -> Any:
        """A lock to hold from a batch's first token to the model's last number; held again by its holder.

        A tokenizer keeps the padding of its last call, and is called with two: in another thread's hands between setting
        and use, answers got a prompt's padding, and so wrong scores. Some models keep state as well (rotary embeddings that
        grow with the batch). The lock is the tokenizer's: models that share one wait for each other, others don't.
        """
        with _locks_guard:
            return _locks.setdefault(self.processor.tokenizer, RLock())

    @cached_property
    def plain(self) -> PlainText:
        """Makes any text safe for this model's processor."""
        with self.alone:
            return PlainText.of(self.processor)

    def encode_prompts(self, prompts: Sequence[str], images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """Left-padded prompt batch with the image tensors, on the model's device."""
        with self.alone:
            texts = self.processor.apply_chat_template(
                [chat(self.plain(p)) for p in prompts], tokenize=False, add_generation_prompt=True
            )
            batch = self.processor(
                text=texts, images=[[i] for i in images], padding=True, return_tensors="pt", add_special_tokens=False
            )
        return {key: value.to(self.model.device) for key, value in batch.items()}

    def encode_answers(
        self, prompts: Sequence[str], images: Sequence[Image.Image], answers: Sequence[str]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Prompt and answer in one batch, the answer closed by EOS; returns it with the answers' token mask (B, T)."""
        tokenizer = self.processor.tokenizer
        with self.alone:
            batch = self.encode_prompts(prompts, images)
            said = tokenizer(
                [self.plain(answer) + tokenizer.eos_token for answer in answers],
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
            with self.alone:
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
            with self.alone:
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
            with self.alone:
                batch = self.encode_prompts(prompts[rows], images[rows])
                out = self.model.generate(**batch, max_new_tokens=max_new_tokens, **sampling)
            texts += self.processor.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts
