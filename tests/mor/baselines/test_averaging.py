"""Parameter averaging: equivalences to plain training, what the trainers optimise, and what is counted and kept."""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import logsigmoid
from transformers import Trainer, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from mor.baselines.averaging import (
    Adapter,
    Averaging,
    Proximal,
    adapter_of,
    average,
    draw_adapter,
    federated_average,
    local_rows,
    local_trainer,
    preference_dataset,
)
from mor.config import Lora
from mor.data.schema import DataError, Preference
from mor.errors import ConfigError
from mor.federation.ledger import Ledger
from mor.seeds import integer
from mor.vlm.load import Vlm, load_model, load_processor
from mor.vlm.lora import ADAPTER_FILE, load_policy
from tests.mor.rewards.test_rewards import BACKBONE, style_pairs

SEED = 3
LORA = Lora(rank=4, alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"])
DPO = Averaging("dpo", 2, 2, 8, 0.002, beta=0.2, proximal=0.0, lora=LORA)
Private = dict[str, tuple[list[Preference], list[Image.Image]]]


def clients() -> Private:
    pairs, images = style_pairs(40)
    return {"large": (pairs[:30], images[:30]), "small": (pairs[30:], images[30:])}


def read(folder: Path, number: int) -> Adapter:
    state: Adapter = load_file(folder / f"round-{number}" / "adapter" / ADAPTER_FILE)
    return state


def train(processor: Any, rows: Dataset, start: Adapter, plan: Averaging, folder: Path) -> tuple[Adapter, float]:
    trainer = local_trainer(BACKBONE, processor, rows, start, plan, rate=plan.learning_rate, seed=0, scratch=folder)
    loss: float = trainer.train().training_loss
    return adapter_of(trainer.model), loss


def same(first: Adapter, second: Adapter) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(first: Adapter, second: Adapter) -> float:
    return math.sqrt(sum(float((first[name] - second[name]).square().sum()) for name in first))


@dataclass(frozen=True)
class Run:
    folder: Path
    ledger: Ledger
    adapter: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two rounds of two clients, by DPO."""
    folder, ledger = tmp_path_factory.mktemp("averaging"), Ledger()
    return Run(folder, ledger, federated_average(BACKBONE, clients(), DPO, seed=SEED, ledger=ledger, folder=folder))


def test_the_average_is_weighted() -> None:
    first, second = {"A": torch.tensor([0.0, 4.0])}, {"A": torch.tensor([4.0, 8.0])}
    assert average([first, second], [1, 3])["A"].tolist() == [3.0, 7.0]  # (0 + 3*4) / 4, (4 + 3*8) / 4


def test_rounds_go_on_through_the_pairs_and_shuffle_each_pass() -> None:
    hand_of_4 = replace(DPO, local_steps=2, batch_size=2)
    dealt = [i for number in range(1, 6) for i in local_rows(5, hand_of_4, number, seed=0)]
    passes = [tuple(dealt[start : start + 5]) for start in range(0, 20, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in passes)
    assert len(set(passes)) > 1


def test_the_rate_falls_over_the_rounds_by_the_cosine_rule() -> None:
    plan = replace(DPO, rounds=4, learning_rate=1.0)
    assert plan.rate(1) == 1.0
    assert plan.rate(3) == pytest.approx(0.5)  # (1 + cos(pi * 2 / 4)) / 2


def test_the_proximal_gradient_is_mu_times_the_way_from_the_shared_adapter() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    proximal = Proximal(0.1)
    proximal.on_train_begin(None, None, None, model=model)
    model.weight.data.fill_(3.0)
    model.weight.grad = torch.tensor([[0.5]])
    proximal.on_pre_optimizer_step(None, None, None, model=model)
    assert model.weight.grad.item() == pytest.approx(0.7)  # 0.5 + 0.1 * (3 - 1)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_one_client_and_one_round_is_plain_local_training(objective: str, tmp_path: Path) -> None:
    plan = replace(DPO, objective=objective, rounds=1)  # type: ignore[arg-type]
    pairs, images = clients()["large"]
    out = federated_average(BACKBONE, {"x": (pairs, images)}, plan, seed=SEED, ledger=Ledger(), folder=tmp_path)

    def said(role: str, texts: list[str]) -> list[list[dict[str, str]]]:
        return [[{"role": role, "content": text}] for text in texts]

    order = local_rows(len(pairs), plan, 1, seed=integer(SEED, "order", "x"))
    seen, chosen = [pairs[i] for i in order], said("assistant", [pairs[i].chosen for i in order])
    columns = {"prompt": said("user", [p.prompt for p in seen]), "images": [[images[i]] for i in order]}
    if objective == "sft":
        columns |= {"completion": chosen}
    else:
        columns |= {"chosen": chosen, "rejected": said("assistant", [p.rejected for p in seen])}
    options: dict[str, Any] = {
        "output_dir": str(tmp_path / "plain"), "max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 0.002,
        "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "max_length": None, "use_cpu": True,
        "bf16": False, "activation_checkpointing": False, "save_strategy": "no", "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    set_seed(integer(SEED, "adapter"))
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=["gate_proj", "up_proj", "down_proj"])
    common: dict[str, Any] = {
        "model": get_peft_model(load_model(BACKBONE), lora),
        "train_dataset": Dataset.from_dict(columns),
        "processing_class": load_processor(BACKBONE),
    }
    trainer: Trainer
    if objective == "sft":
        trainer = SFTTrainer(args=SFTConfig(**options), **common)
    else:
        trainer = DPOTrainer(args=DPOConfig(**options, beta=0.2), **common)
    trainer.train()
    assert same(load_file(out / ADAPTER_FILE), adapter_of(trainer.model))


def test_the_shared_adapter_is_the_mean_of_the_clients_weighted_by_their_pairs(run: Run, tmp_path: Path) -> None:
    processor, start = load_processor(BACKBONE), read(run.folder, 0)
    trained = {}
    for name, (pairs, images) in clients().items():
        order = local_rows(len(pairs), DPO, 1, seed=integer(SEED, "order", name))
        rows = preference_dataset([pairs[i] for i in order], [images[i] for i in order], processor, "dpo")
        trained[name], _ = train(processor, rows, start, DPO, tmp_path)
    assert distance(trained["large"], trained["small"]) > 0.01
    for name, tensor in read(run.folder, 1).items():
        assert torch.allclose(tensor, 0.75 * trained["large"][name] + 0.25 * trained["small"][name], atol=1e-7)  # 30 : 10


def test_reordering_the_clients_changes_nothing(run: Run, tmp_path: Path) -> None:
    private = dict(reversed(clients().items()))
    federated_average(BACKBONE, private, replace(DPO, rounds=1), seed=SEED, ledger=Ledger(), folder=tmp_path)
    assert same(read(tmp_path, 1), read(run.folder, 1))


def test_an_interrupted_run_continues_to_the_same_adapter_and_ledger(run: Run, tmp_path: Path) -> None:
    for name in ("round-0", "round-1"):
        shutil.copytree(run.folder / name, tmp_path / name)
    (tmp_path / "fresh" / "adapter").mkdir(parents=True)  # killed while it was leaving round 2
    (tmp_path / "fresh" / "adapter" / ADAPTER_FILE).write_bytes(b"half")
    ledger = Ledger()
    out = federated_average(BACKBONE, clients(), DPO, seed=SEED, ledger=ledger, folder=tmp_path)
    assert (out / ADAPTER_FILE).read_bytes() == (run.adapter / ADAPTER_FILE).read_bytes()
    assert ledger.bytes == run.ledger.bytes


def test_the_ledger_counts_the_base_once_and_the_adapter_both_ways_every_round(run: Run) -> None:
    adapter = (run.adapter / ADAPTER_FILE).stat().st_size
    weights = (Path(BACKBONE) / "model.safetensors").stat().st_size
    for name in ("large", "small"):
        assert run.ledger.total(name, "up") == 2 * adapter
        assert run.ledger.total(name, "down") == 2 * adapter + weights


def test_the_averaged_adapter_is_a_policy_that_prefers_what_the_clients_prefer(run: Run) -> None:
    pairs, images = clients()["large"]

    def margin(vlm: Vlm) -> float:
        prompts = [p.prompt for p in pairs]
        chosen = vlm.answer_log_probs(prompts, images, [p.chosen for p in pairs])
        return float((chosen - vlm.answer_log_probs(prompts, images, [p.rejected for p in pairs])).mean())

    assert margin(load_policy(BACKBONE, run.adapter)) > margin(Vlm.load(BACKBONE)) + 0.1


def test_the_reference_of_dpo_is_the_base_in_every_round(run: Run, tmp_path: Path) -> None:
    pairs, images = clients()["large"][0][:8], clients()["large"][1][:8]
    processor = load_processor(BACKBONE)
    rows, plan = preference_dataset(pairs, images, processor, "dpo"), replace(DPO, local_steps=1)
    _, loss = train(processor, rows, read(run.folder, 1), plan, tmp_path)
    policy, base = load_policy(BACKBONE, run.folder / "round-1" / "adapter"), Vlm.load(BACKBONE)
    prompts = [p.prompt for p in pairs]

    def reward(answers: list[str]) -> torch.Tensor:
        return policy.answer_log_probs(prompts, images, answers) - base.answer_log_probs(prompts, images, answers)

    margin = 0.2 * (reward([p.chosen for p in pairs]) - reward([p.rejected for p in pairs]))
    expected = -float(logsigmoid(margin).mean())
    assert loss == pytest.approx(expected, abs=1e-4)
    assert expected < math.log(2) - 0.01  # what it would be with the last round as the reference


def test_the_loss_of_sft_covers_the_answer_and_its_end_and_nothing_else(tmp_path: Path) -> None:
    plan = replace(DPO, objective="sft", local_steps=1)
    pairs, images = clients()["large"][0][:8], clients()["large"][1][:8]
    vlm, chosen = Vlm.load(BACKBONE), [p.chosen for p in pairs]
    tokens = sum(len(vlm.processor.tokenizer(text, add_special_tokens=False).input_ids) + 1 for text in chosen)  # + EOS
    rows = preference_dataset(pairs, images, vlm.processor, "sft")
    _, start = draw_adapter(BACKBONE, LORA, seed=0)
    _, loss = train(vlm.processor, rows, start, plan, tmp_path)
    expected = -float(vlm.answer_log_probs([p.prompt for p in pairs], images, chosen).sum()) / tokens
    assert loss == pytest.approx(expected, rel=1e-4)


def test_the_proximal_term_keeps_a_client_closer_to_the_shared_adapter(tmp_path: Path) -> None:
    pairs, images = clients()["large"]
    processor = load_processor(BACKBONE)
    rows = preference_dataset(pairs, images, processor, "sft")
    _, start = draw_adapter(BACKBONE, LORA, seed=0)

    def moved(mu: float) -> float:
        plan = replace(DPO, objective="sft", local_steps=3, proximal=mu)
        return distance(train(processor, rows, start, plan, tmp_path)[0], start)

    assert moved(10.0) < 0.9 * moved(0.0)


def test_a_rank_of_0_leaves_no_adapter_to_average(tmp_path: Path) -> None:
    plan = replace(DPO, lora=LORA.model_copy(update={"rank": 0}))
    with pytest.raises(ConfigError, match=r"lora.rank: got 0.*set a rank of 1 or more"):
        federated_average(BACKBONE, clients(), plan, seed=SEED, ledger=Ledger(), folder=tmp_path)


def test_a_client_without_pairs_is_named(tmp_path: Path) -> None:
    private: Private = {**clients(), "empty": ([], [])}
    with pytest.raises(DataError, match="client empty: got no preference pairs"):
        federated_average(BACKBONE, private, DPO, seed=SEED, ledger=Ledger(), folder=tmp_path)
