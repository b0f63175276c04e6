"""A round of GRPO: TRL's ``GRPOTrainer`` on the mixed reward.

Source: Shao et al. 2024, "DeepSeekMath" (GRPO). We call TRL and copy nothing. Two departures in how it is called:

1. ``beta > 0`` always (TRL's default of 0 drops the reference).
2. Every round starts from the *base* with a fresh LoRA into which the last round's weights are loaded, so that the
   reference stays the base; a PEFT model handed to TRL would make the last round the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from mor.alignment.mixed_reward import MixedReward
from mor.alignment.shared_prompts import SharedPromptTrainer
from mor.config import GrpoSettings
from mor.data.public import PublicPrompt
from mor.vlm.load import load_model, load_processor
from mor.vlm.lora import ADAPTER_FILE, lora_config
from mor.vlm.plain import PlainText
from mor.vlm.progress import show_progress
from mor.vlm.training import trl_arguments


def train_round(
    base: str,
    reward: MixedReward,
    settings: GrpoSettings,
    *,
    seed: int,
    adapter: Path | None,
    checkpoints: Path,
    callbacks: list[TrainerCallback],
    trainer_class: type[GRPOTrainer] = SharedPromptTrainer,
) -> tuple[Any, list[dict[str, float]]]:
    """One round of GRPO; returns the policy (a PEFT model) and TRL's log, one row a step with fresh completions.

    ``adapter`` is the last round's PEFT folder. Resumes from ``checkpoints`` after an interruption.
    """
    set_seed(seed)  # before the LoRA is drawn
    arguments = trl_arguments(
        checkpoints, steps=settings.steps, batch_size=settings.prompts * settings.generations,
        learning_rate=settings.learning_rate, seed=seed, lr_scheduler_type="cosine", warmup_steps=3,
        num_generations=settings.generations, num_iterations=settings.iterations, beta=settings.beta,
        temperature=settings.temperature, max_completion_length=settings.max_completion_tokens,
        logging_steps=1, save_steps=settings.checkpoint_steps, remove_unused_columns=False,
    )  # fmt: skip
    processor = load_processor(base)
    trainer: Any = trainer_class(
        model=load_model(base),
        reward_funcs=reward,
        args=GRPOConfig(**arguments),
        train_dataset=prompt_dataset(list(reward.prompts.values()), processor),
        processing_class=processor,
        peft_config=lora_config(settings.lora, base),
        callbacks=callbacks,
    )
    if adapter is not None:
        set_peft_model_state_dict(trainer.model, load_file(adapter / ADAPTER_FILE))
    show_progress(trainer, {"reward_std": "spread", "kl": "KL", "entropy": "entropy"})
    trainer.train_or_resume()
    return trainer.model, [row for row in trainer.state.log_history if "reward" in row]


def prompt_dataset(prompts: Sequence[PublicPrompt], processor: Any) -> Dataset:
    """Conversational rows with an image, as ``GRPOTrainer`` takes them; ``processor`` is the one that will read them."""
    plain = PlainText.of(processor)
    return Dataset.from_dict(
        {
            "id": [prompt.id for prompt in prompts],
            "prompt": [[{"role": "user", "content": plain(prompt.text)}] for prompt in prompts],
            "image": [prompt.image for prompt in prompts],
        }
    )
