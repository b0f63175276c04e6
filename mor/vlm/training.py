"""What every training here has in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def training_arguments(
    output: Path, *, steps: int, batch_size: int, learning_rate: float, seed: int, **own: Any
) -> dict[str, Any]:
    """Arguments for ``TrainingArguments`` and the classes that TRL derives from it; ``own`` are added, or take their place."""
    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "use_cpu": not gpu,
        "save_total_limit": 1,
        "report_to": [],
        "seed": seed,
    } | own


def trl_arguments(output: Path, **given: Any) -> dict[str, Any]:
    """The same for TRL's trainers, which read images and activations as they come."""
    return training_arguments(output, bf16=torch.cuda.is_available(), activation_checkpointing=False, **given)
