"""Train an implicit reward model: DPO on the client's own VLM, by TRL's ``DPOTrainer``.

Source: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from mor.config import Lora, Rewards, split_revision
from mor.data.schema import Preference
from mor.vlm.load import load_model, load_processor
from mor.vlm.plain import PlainText
from mor.vlm.progress import ResumableTrainer, show_progress


class ResumableDPOTrainer(ResumableTrainer, DPOTrainer):
    """TRL's trainer, resumable."""


class OrderedLoraConfig(LoraConfig):
    """PEFT's settings, written the same by every process: PEFT writes its sets of names as they come, in any order.

    ``base`` names a base from the hub, which PEFT itself is not to know: it would look it up again, at no revision.
    """

    base: str | None = None  # no field of PEFT's dataclass

    def to_dict(self) -> dict[str, Any]:
        settings = {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}
        return settings | ({"base_model_name_or_path": self.base} if self.base else {})


def lora_config(lora: Lora, base: str | None = None) -> LoraConfig | None:
    """PEFT's settings for a LoRA; ``None`` for rank 0, which trains every weight. They name ``base`` if it is a hub id."""
    if not lora.rank:
        return None
    name, revision = split_revision(base or ".")
    config = OrderedLoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.target_modules, revision=revision)
    if revision:
        config.base = name
    return config


def _dataset(pairs: Sequence[Preference], images: Sequence[Image.Image], processor: Any) -> Dataset:
    plain = PlainText.of(processor)

    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": plain(text)}]

    return Dataset.from_dict(
        {
            "prompt": [said("user", pair.prompt) for pair in pairs],
            "chosen": [said("assistant", pair.chosen) for pair in pairs],
            "rejected": [said("assistant", pair.rejected) for pair in pairs],
            "images": [[image] for image in images],
        }
    )


def train_implicit(
    backbone: str,
    pairs: Sequence[Preference],
    images: Sequence[Image.Image],
    settings: Rewards,
    *,
    seed: int,
    checkpoints: Path,
) -> Any:
    """DPO from ``backbone``; returns the trained (PEFT) model. Resumes from ``checkpoints`` after an interruption."""
    set_seed(seed)  # before the LoRA is drawn
    arguments = DPOConfig(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings.steps // 10),
        beta=settings.beta,
        max_length=None,
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        logging_steps=10,
        save_steps=max(1, settings.steps // 4),
        save_total_limit=1,
        report_to=[],
        seed=seed,
    )
    processor, peft = load_processor(backbone), lora_config(settings.lora, backbone)
    trainer = ResumableDPOTrainer(
        model=load_model(backbone),
        ref_model=None if peft else load_model(backbone),  # TRL would look its name up again, at no revision
        args=arguments,
        train_dataset=_dataset(pairs, images, processor),
        processing_class=processor,
        peft_config=peft,
    )
    show_progress(trainer, {"loss": "loss", "rewards/accuracies": "pairs right"})
    trainer.train_or_resume()
    return trainer.model
