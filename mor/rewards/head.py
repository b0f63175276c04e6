"""Train a scalar reward head on a VLM by Bradley-Terry, on ``transformers.Trainer``.

    loss = -log sigmoid(r(y+) - r(y-)) + lambda * (r(y+) + r(y-))^2

The second term keeps scores near zero (Eisenstein et al. 2023). TRL's ``RewardTrainer`` takes text only, hence this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from PIL import Image
from torch import nn
from torch.nn.functional import logsigmoid
from transformers import TrainingArguments

from mor.config import Rewards
from mor.data.schema import Preference
from mor.rewards.implicit import reward_schedule
from mor.rewards.model import ScalarHead, last_answer_state
from mor.vlm.load import Vlm
from mor.vlm.lora import lora_config
from mor.vlm.progress import ResumableTrainer, show_progress
from mor.vlm.training import training_arguments


class BradleyTerry(nn.Module):
    """Backbone and head; ``forward`` returns the loss of a batch of pairs, chosen first."""

    _keys_to_ignore_on_save = None  # which ``Trainer`` reads of whatever it resumes

    def __init__(self, vlm: Vlm, head: ScalarHead, centre: float) -> None:
        super().__init__()
        self.backbone, self.head, self.centre, self._vlm = vlm.model, head, centre, vlm

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Weights, tied ones (word embeddings and output layer) once, as safetensors demands."""
        named: dict[int, str] = {}
        state = super().state_dict(*args, **options)
        return {name: t for name, t in state.items() if named.setdefault(t.data_ptr(), name) == name}

    def forward(self, answer_mask: torch.Tensor, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        chosen, rejected = self.head(last_answer_state(self._vlm, batch, answer_mask)).chunk(2)
        loss = -logsigmoid(chosen - rejected) + self.centre * (chosen + rejected) ** 2
        return {"loss": loss.mean(), "logits": chosen - rejected}


def train_head(
    backbone: str,
    pairs: Sequence[Preference],
    images: Sequence[Image.Image],
    settings: Rewards,
    *,
    seed: int,
    checkpoints: Path,
) -> tuple[Any, ScalarHead]:
    """Train backbone and head; returns both. Resumes from ``checkpoints`` after an interruption."""
    torch.manual_seed(seed)
    vlm = Vlm.load(backbone)
    peft = lora_config(settings.lora, backbone)
    model = get_peft_model(vlm.model, peft) if peft else vlm.model
    head = ScalarHead(model.config.get_text_config().hidden_size).to(vlm.model.device)
    vlm = Vlm(model, vlm.processor)

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        answers = [*(pairs[i].chosen for i in rows), *(pairs[i].rejected for i in rows)]
        batch, mask = vlm.encode_answers([pairs[i].prompt for i in rows] * 2, [images[i] for i in rows] * 2, answers)
        return {**batch, "answer_mask": mask}

    arguments = training_arguments(
        checkpoints, seed=seed, remove_unused_columns=False, dataloader_pin_memory=False, **reward_schedule(settings)
    )
    trainer = ResumableTrainer(
        BradleyTerry(vlm, head, settings.centre),
        TrainingArguments(**arguments),
        train_dataset=list(range(len(pairs))),
        data_collator=collate,
    )
    show_progress(trainer, {"loss": "loss"})
    trainer.train_or_resume()
    return model, head
