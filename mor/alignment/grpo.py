"""GRPO in rounds: TRL's ``GRPOTrainer`` on the mixed reward, the router refitted on fresh answers after each.

Source: Shao et al. 2024, "DeepSeekMath" (GRPO). We call TRL and copy nothing. Two departures in how it is called:

1. ``beta > 0`` always (TRL's default of 0 drops the reference).
2. Every round starts from the *base* with a fresh LoRA into which the last round's weights are loaded, so that the
   reference stays the base; a PEFT model handed to TRL would make the last round the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed
from trl import GRPOConfig

from mor.alignment.mixed_reward import MixedReward, PublicPrompt, ask_clients
from mor.alignment.shared_prompts import SharedPromptTrainer
from mor.config import Grpo
from mor.federation.quorum import ask, require_quorum
from mor.federation.remote import RemoteClient
from mor.rewards.implicit import lora_config
from mor.routing.bradley_terry import fit_bradley_terry
from mor.routing.router import Router
from mor.vlm.load import Vlm, load_model, load_processor
from mor.vlm.plain import PlainText
from mor.vlm.progress import show_progress

ADAPTER_FILE = "adapter_model.safetensors"


def train_round(
    base: str,
    reward: MixedReward,
    settings: Grpo,
    *,
    seed: int,
    adapter: Path | None,
    checkpoints: Path,
    callbacks: list[TrainerCallback],
) -> tuple[Any, list[dict[str, float]]]:
    """One round of GRPO; returns the policy (a PEFT model) and TRL's log, one row a step with fresh completions.

    ``adapter`` is the last round's PEFT folder. Resumes from ``checkpoints`` after an interruption.
    """
    set_seed(seed)  # before the LoRA is drawn
    arguments = GRPOConfig(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.prompts * settings.generations,
        num_generations=settings.generations,
        num_iterations=settings.iterations,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        beta=settings.beta,
        temperature=settings.temperature,
        max_completion_length=settings.max_completion_tokens,
        activation_checkpointing=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        logging_steps=1,
        save_steps=settings.checkpoint_steps,
        save_total_limit=1,
        report_to=[],
        seed=seed,
        remove_unused_columns=False,
    )
    processor = load_processor(base)
    trainer = SharedPromptTrainer(
        model=load_model(base),
        reward_funcs=reward,
        args=arguments,
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


def load_policy(base: str, adapter: Path, batch_size: int = 100) -> Vlm:
    """The base with a LoRA adapter merged in."""
    vlm = Vlm.load(base, batch_size)
    merged = PeftModel.from_pretrained(vlm.model, str(adapter)).merge_and_unload()
    return Vlm(merged.eval(), vlm.processor, batch_size)


@dataclass(frozen=True)
class Refit:
    """What an online refit rests on: comparisons used and the log-loss of the mixed reward on them, in nats."""

    comparisons: int
    loss: float


def refit_router(
    router: Router,
    policy: Vlm,
    clients: Sequence[RemoteClient],
    prompts: Sequence[PublicPrompt],
    features: torch.Tensor,
    *,
    budget: int,
    trust: float,
    temperature: float,
    max_tokens: int,
    quorum: int,
    rng: np.random.Generator,
) -> tuple[Router, Refit]:
    """Refit on the clients' "A or B?" answers to fresh answers of ``policy``; ``features`` (N, F) belong to ``prompts``.

    Draws ``budget`` prompts, samples two answers to each, drops pairs that are equal, asks every client's annotator for
    a choice and every reward model for its scores. Torch's global generator is seeded from ``rng`` for the sampling. Raises
    ``QuorumError`` where too few clients answer.
    """
    chosen = rng.choice(len(prompts), size=min(budget, len(prompts)), replace=False)
    asked = [prompts[i] for i in chosen]
    torch.manual_seed(int(rng.integers(2**31)))
    drafts = [
        policy.answer([p.text for p in asked], [p.image for p in asked], max_tokens, temperature=temperature) for _ in "AB"
    ]
    differ = [i for i in range(len(asked)) if drafts[0][i] != drafts[1][i]]
    if not differ:
        return router, Refit(0, float("nan"))
    asked, rows = [asked[i] for i in differ], chosen[differ]
    first, second = ([draft[i] for i in differ] for draft in drafts)
    trusted = [client for client, lost in zip(clients, router.lost, strict=True) if not lost]
    everyone = np.tile(~np.array(router.lost), (len(asked), 1))
    (liked, away), (other, gone) = (ask_clients(clients, asked, texts, everyone) for texts in (first, second))
    margins = liked - other
    votes, silent = ask(trusted, lambda client: client.compare([p.id for p in asked], first, second))
    require_quorum(trusted, away | gone | silent, quorum)
    choices = [(i, 1.0 if vote else -1.0) for given in votes.values() for i, vote in enumerate(given) if vote is not None]
    if not choices:
        return router, Refit(0, float("nan"))
    index = [i for i, _ in choices]
    signs = np.array([sign for _, sign in choices])
    fitted, loss = fit_bradley_terry(
        router,
        features[torch.from_numpy(rows[index])],
        torch.from_numpy(margins[index] * signs[:, None]).float(),
        public=features,
        trust=trust,
    )
    return fitted, Refit(len(choices), loss)
