"""Parameter averaging, what MoR is compared with: FedAvg, FedProx and their DPO form, on LoRA adapters.

Every round each client k of n_k pairs starts from the shared adapter w, trains it on its own pairs, and the server
takes the weighted mean of what comes back:

    w_k = argmin_v  loss_k(v) + mu / 2 * |v - w|^2,    w <- sum_k n_k / n * w_k

``loss_k`` is the likelihood of the chosen answers (``sft``) or DPO (``dpo``), by TRL's trainers on PEFT's adapters.
Sources: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data" (FedAvg,
mu = 0); Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx); Zhang et al. 2023, "Towards
Building the Federated GPT" (FedIT, the averaging of adapters); Ye et al. 2024, "OpenFedLLM" (FedDPO).

What to know about it:

1. LoRA's A and B are averaged apart, as FedIT does. The mean of the products BA is not the product of the means, so
   the mean adapter is not exactly the mean update. All clients start from one draw of A.
2. Every client takes the same number of steps a round, whatever the number of its pairs.
3. AdamW starts afresh each round. Its rate is constant in a round and falls over the rounds by the cosine rule.
4. The pull of FedProx is added to the gradient after clipping, before AdamW scales it.
5. DPO's reference is the base in every round, for the reason given in ``mor.alignment.grpo``.
6. Prompts and answers are rendered as ``Vlm`` renders them, so the answer ends with EOS whatever the chat template.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from huggingface_hub import snapshot_download
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from PIL import Image
from rich.progress import Progress
from safetensors.torch import load_file, save
from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from mor.addresses import split_revision
from mor.config import Lora
from mor.data.schema import DataError, Preference
from mor.errors import ConfigError
from mor.federation.ledger import Ledger
from mor.files import fresh_folder
from mor.seeds import integer, stream
from mor.vlm.load import ModelError, chat, load_model, load_processor
from mor.vlm.lora import ADAPTER_FILE, lora_config
from mor.vlm.plain import PlainText
from mor.vlm.training import trl_arguments

Adapter = dict[str, torch.Tensor]  # LoRA's matrices by PEFT's names


@dataclass(frozen=True)
class Averaging:
    """How the clients train and how often they meet."""

    objective: Literal["sft", "dpo"]
    rounds: int
    local_steps: int  # of every client in a round
    batch_size: int  # pairs
    learning_rate: float  # of the first round
    beta: float  # DPO's inverse temperature
    proximal: float  # FedProx's mu; 0 is FedAvg
    lora: Lora

    def rate(self, number: int) -> float:
        """The learning rate of round ``number``, counted from 1."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / self.rounds))


def federated_average(
    base: str,
    private: Mapping[str, tuple[Sequence[Preference], Sequence[Image.Image]]],
    settings: Averaging,
    *,
    seed: int,
    ledger: Ledger,
    folder: Path,
) -> Path:
    """Average adapters over the rounds; returns the PEFT folder of the last one, for ``load_policy``.

    ``private`` holds each client's pairs with their images. The order of the clients changes nothing. ``ledger`` counts
    the bytes: the weights of ``base`` once a client, and the adapter both ways every round. Continues from the last
    ``round-<n>`` in ``folder`` after an interruption, and then counts on from the ledger kept there; give a folder again
    only with the same arguments. Raises ``ConfigError`` for a LoRA of rank 0 and ``DataError`` for a client without pairs.
    """
    names, sizes = sorted(private), [len(private[name][0]) for name in sorted(private)]
    if 0 in sizes:
        raise DataError(f"client {names[sizes.index(0)]}: got no preference pairs, expected at least one; leave it out")
    if not _round(folder, 0).exists():
        config, shared = draw_adapter(base, settings.lora, seed=integer(seed, "adapter"))
        weights = base_bytes(base)
        for name in names:
            ledger.record(name, "base", down=weights)
        _leave(folder, 0, config, shared, ledger)
    last = max(n for n in range(settings.rounds + 1) if _round(folder, n).exists())
    ledger.restore(_round(folder, last) / "ledger.json")
    config = PeftConfig.from_pretrained(str(_round(folder, last) / "adapter"))
    shared = load_file(_round(folder, last) / "adapter" / ADAPTER_FILE)
    processor = load_processor(base)
    data = {name: preference_dataset(*private[name], processor, settings.objective) for name in names}
    with Progress() as progress:
        bar = progress.add_task("averaging", total=settings.rounds * len(names), completed=last * len(names))
        for number in range(last + 1, settings.rounds + 1):
            adapters = []
            for name in names:
                rows = local_rows(len(data[name]), settings, number, seed=integer(seed, "order", name))
                trainer = local_trainer(
                    base, processor, data[name].select(rows), shared, settings,
                    rate=settings.rate(number), seed=integer(seed, "local", name, number), scratch=folder / "trainer",
                )  # fmt: skip
                loss = trainer.train().training_loss
                adapters.append(adapter_of(trainer.model))
                ledger.record(name, "adapter", up=len(save(adapters[-1])), down=len(save(shared)))
                progress.update(bar, advance=1, description=f"averaging, {settings.objective} loss {loss:.3g}")
            shared = average(adapters, sizes)
            _leave(folder, number, config, shared, ledger)
    return _round(folder, settings.rounds) / "adapter"


def average(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """The weighted mean of adapters, tensor by tensor; ``weights`` are on any scale."""
    shares = [weight / sum(weights) for weight in weights]
    return {
        name: torch.stack([share * adapter[name] for share, adapter in zip(shares, adapters, strict=True)]).sum(dim=0)
        for name in adapters[0]
    }


def draw_adapter(base: str, lora: Lora, *, seed: int) -> tuple[PeftConfig, Adapter]:
    """A new LoRA for ``base`` with PEFT's settings for it. A is random and B is 0, so it changes no answer yet."""
    config = lora_config(lora, base)
    if config is None:
        raise ConfigError("lora.rank: got 0, which trains every weight; averaging exchanges adapters, set a rank of 1 or more")
    set_seed(seed)
    model = get_peft_model(load_model(base), config)
    return model.peft_config["default"], adapter_of(model)


def adapter_of(model: Any) -> Adapter:
    """The LoRA of a PEFT model, on the CPU, as PEFT writes it to ``adapter_model.safetensors``."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def local_rows(n: int, settings: Averaging, number: int, *, seed: int) -> list[int]:
    """Which of a client's ``n`` pairs it trains on in round ``number``, counted from 1, in order.

    The rounds deal from one endless deck: the pairs over and over, shuffled anew for each pass.
    """
    hand = settings.local_steps * settings.batch_size
    start = (number - 1) * hand
    passes = range(start // n, (start + hand - 1) // n + 1)
    deck = np.concatenate([stream(seed, "pass", i).permutation(n) for i in passes])
    rows: list[int] = deck[start - passes[0] * n :][:hand].tolist()
    return rows


def preference_dataset(
    pairs: Sequence[Preference], images: Sequence[Image.Image], processor: Any, objective: Literal["sft", "dpo"]
) -> Dataset:
    """Rows as TRL takes them: ``prompt`` and ``images``, with ``completion`` (sft) or ``chosen`` and ``rejected`` (dpo)."""
    template, eos, plain = processor.apply_chat_template, processor.tokenizer.eos_token, PlainText.of(processor)
    answers = {"completion": "chosen"} if objective == "sft" else {"chosen": "chosen", "rejected": "rejected"}
    return Dataset.from_dict(
        {
            "prompt": [template(chat(plain(pair.prompt)), tokenize=False, add_generation_prompt=True) for pair in pairs],
            "images": [[image] for image in images],
            **{column: [plain(getattr(pair, answer)) + eos for pair in pairs] for column, answer in answers.items()},
        }
    )


def local_trainer(
    base: str, processor: Any, rows: Dataset, shared: Adapter, settings: Averaging, *, rate: float, seed: int, scratch: Path
) -> Trainer:
    """TRL's trainer for one client's part in a round: ``base`` with the LoRA ``shared`` in it, over ``rows`` in their order.

    It is silent and writes no file; ``scratch`` is the folder that TRL insists on.
    """
    arguments = trl_arguments(
        scratch, steps=settings.local_steps, batch_size=settings.batch_size, learning_rate=rate, seed=seed,
        train_sampling_strategy="sequential", lr_scheduler_type="constant", max_length=None,
        logging_strategy="no", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    common: dict[str, Any] = {
        "model": load_model(base),
        "train_dataset": rows,
        "processing_class": processor,
        "peft_config": lora_config(settings.lora, base),
        "callbacks": [Proximal(settings.proximal)] if settings.proximal else [],
    }
    trainer: Trainer
    if settings.objective == "sft":
        trainer = SFTTrainer(args=SFTConfig(**arguments, completion_only_loss=True), **common)
    else:
        trainer = DPOTrainer(args=DPOConfig(**arguments, beta=settings.beta), **common)
    set_peft_model_state_dict(trainer.model, shared)
    trainer.remove_callback(PrinterCallback)
    return trainer


class Proximal(TrainerCallback):
    """FedProx: adds the gradient of ``mu / 2 * |v - w|^2`` before each step; w is what the training started from."""

    def __init__(self, mu: float) -> None:
        self.mu = mu
        self.start: Adapter = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.start = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, weight in model.named_parameters():
            if name in self.start and weight.grad is not None:
                weight.grad.add_(weight.detach() - self.start[name], alpha=self.mu)


def base_bytes(base: str) -> int:
    """Bytes of the weights files of a model folder or hub id at its revision, which a client must hold to train."""
    name, revision = split_revision(base)
    hub = revision and snapshot_download(name, revision=revision, allow_patterns="model*.safetensors")
    folder = Path(hub or name)
    files = list(folder.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"{base}: no model*.safetensors there to count the bytes of; save the model with save_pretrained")
    return sum(file.stat().st_size for file in files)


def _round(folder: Path, number: int) -> Path:
    return folder / f"round-{number}"


def _leave(folder: Path, number: int, config: PeftConfig, adapter: Adapter, ledger: Ledger) -> None:
    """Keep what a round ends with; it appears in ``folder`` whole or not at all."""
    with fresh_folder(_round(folder, number)) as fresh:
        config.save_pretrained(str(fresh / "adapter"))
        (fresh / "adapter" / ADAPTER_FILE).write_bytes(save(adapter))
        ledger.save(fresh / "ledger.json")
