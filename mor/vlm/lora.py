"""LoRA by PEFT: an adapter's settings, and a model with an adapter in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel

from mor.addresses import split_revision
from mor.config import Lora
from mor.vlm.load import Vlm

ADAPTER_FILE = "adapter_model.safetensors"


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


def load_policy(base: str, adapter: Path, batch_size: int = 100) -> Vlm:
    """The base with a LoRA adapter merged in."""
    vlm = Vlm.load(base, batch_size)
    merged = PeftModel.from_pretrained(vlm.model, str(adapter)).merge_and_unload()
    return Vlm(merged.eval(), vlm.processor, batch_size)
