"""Computing a prompt once for its whole group changes neither a number nor a gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer

from mor.alignment.grpo import prompt_dataset
from mor.alignment.shared_prompts import SharedPromptTrainer, distinct
from mor.config import Lora
from mor.data.public import PublicPrompt
from mor.fedvqa.render import draw_question
from mor.vlm.load import Vlm
from mor.vlm.lora import lora_config

LENGTH = 6
QUESTIONS = [draw_question(domain, np.random.default_rng(5), "test") for domain in ("documents", "medical", "scenes")]


def a_trainer(source: str, folder: Path) -> tuple[SharedPromptTrainer, dict[str, Any]]:
    """A trainer with a LoRA that already does something, and a batch of two answers to each of three questions, shuffled."""
    vlm = Vlm.load(source)
    images = [Image.fromarray(q.image) for q in QUESTIONS]
    prompts = [PublicPrompt(str(i), q.prompt, images[i], None, np.ones(1)) for i, q in enumerate(QUESTIONS)]
    set_seed(0)
    trainer = SharedPromptTrainer(
        model=vlm.model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=6,
            num_generations=2,
            temperature=0.7,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to=[],
            beta=0.1,
        ),
        train_dataset=prompt_dataset(prompts, vlm.processor),
        processing_class=vlm.processor,
        peft_config=lora_config(Lora(rank=4, alpha=8, target_modules=["gate_proj", "down_proj"])),
    )
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    rows = [0, 1, 2, 1, 0, 2]
    batch, mask = vlm.encode_answers(
        [QUESTIONS[i].prompt for i in rows], [images[i] for i in rows], ["left", "47", "a b", "The answer is", "1", "no"]
    )
    length = int(mask.sum(1).max())
    names = ("pixel_values", "token_type_ids", "mm_token_type_ids", "pixel_attention_mask")
    given: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    return trainer, given | {
        "input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "logits_to_keep": length,
        "compute_entropy": True, "num_images": [1] * len(rows),
    }  # fmt: skip


def evaluated(method: Any, trainer: SharedPromptTrainer, batch: dict[str, Any]) -> list[torch.Tensor]:
    """Log-probabilities, entropies and the gradients of something that depends on both."""
    log_probs, entropies, _ = method(trainer, trainer.model, **batch)
    mask = batch["attention_mask"][:, -batch["logits_to_keep"] :]
    trainer.model.zero_grad()
    ((log_probs * torch.arange(len(mask))[:, None] + entropies) * mask).sum().backward()
    gradients = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
    assert gradients
    return [log_probs * mask, entropies * mask, *gradients]


@pytest.mark.parametrize("source", sorted(path.as_posix() for path in Path("models/zoo").iterdir()))
def test_numbers_and_gradients_are_trls_own(source: str, tmp_path: Path) -> None:
    trainer, batch = a_trainer(source, tmp_path)
    ours = evaluated(SharedPromptTrainer._get_per_token_logps_and_entropies, trainer, batch)
    theirs = evaluated(GRPOTrainer._get_per_token_logps_and_entropies, trainer, batch)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


def test_rows_are_distinct_by_prompt_and_image() -> None:
    prompts = torch.tensor([[1, 2], [1, 2], [1, 3], [1, 2]])
    images = torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None]
    first, group = distinct(prompts, images)
    assert first.tolist() == [0, 1, 2]
    assert group.tolist() == [0, 1, 2, 0]
