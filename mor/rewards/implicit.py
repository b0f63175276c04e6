"""Train an implicit reward model: DPO on the client's own VLM, by TRL's ``DPOTrainer``.

Source: Rafailov et al. 2023, "Direct Preference Optimization: Your Language Model is Secretly a Reward Model".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from transformers import set_seed
from trl import DPOConfig, DPOTrainer

from mor.config import Rewards
from mor.data.schema import Preference
from mor.vlm.load import load_model, load_processor
from mor.vlm.lora import lora_config
from mor.vlm.plain import PlainText
from mor.vlm.progress import ResumableTrainer, show_progress
from mor.vlm.training import trl_arguments


class ResumableDPOTrainer(ResumableTrainer, DPOTrainer):
    """TRL's trainer, resumable."""


def reward_schedule(settings: Rewards) -> dict[str, Any]:
    """How long and how fast a reward model is trained, whatever its kind."""
    return {
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, settings.steps // 10),
        "logging_steps": 10,
        "save_steps": max(1, settings.steps // 4),
    }


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
) -> tuple[Any, None]:
    """DPO from ``backbone``; returns the (PEFT) model, and no head. Resumes from ``checkpoints`` after an interruption."""
    set_seed(seed)  # before the LoRA is drawn
    arguments = trl_arguments(checkpoints, seed=seed, beta=settings.beta, max_length=None, **reward_schedule(settings))
    processor, peft = load_processor(backbone), lora_config(settings.lora, backbone)
    trainer = ResumableDPOTrainer(
        model=load_model(backbone),
        ref_model=None if peft else load_model(backbone),  # TRL would look its name up again, at no revision
        args=DPOConfig(**arguments),
        train_dataset=_dataset(pairs, images, processor),
        processing_class=processor,
        peft_config=peft,
    )
    show_progress(trainer, {"loss": "loss", "rewards/accuracies": "pairs right"})
    trainer.train_or_resume()
    return trainer.model, None
