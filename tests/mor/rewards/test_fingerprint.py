"""A reward model's fingerprint follows everything that moves a score, and nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from benchmarks.keys import weights_digest
from mor.config import Lora
from mor.rewards.calibration import Calibration
from mor.rewards.fingerprint import processor_digest, tensors_digest
from mor.rewards.kinds import load_reward_model
from mor.rewards.model import ScalarHead
from mor.vlm.load import ModelError, Vlm, load_processor
from mor.vlm.lora import lora_config

ZOO = Path("models/zoo")


def name_of(folder: Path) -> str:
    return load_reward_model(folder / "reward").fingerprint


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both kinds of reward model (``implicit`` on an adapter, ``head`` on its own weights), each beside its backbone."""
    root = tmp_path_factory.mktemp("made")
    for kind in ("implicit", "head"):
        backbone, reward = root / kind / "backbone", root / kind / "reward"
        shutil.copytree(ZOO / "llava", backbone)
        vlm = Vlm.load(str(backbone))
        if kind == "implicit":
            torch.manual_seed(0)
            model = get_peft_model(vlm.model, lora_config(Lora(rank=2, alpha=4, target_modules=["q_proj"])))  # type: ignore[arg-type]
            for weight in model.parameters():
                weight.data = weight.data + 0.01 if weight.requires_grad else weight.data
            model.save_pretrained(str(reward / "adapter"))
        else:
            shutil.copytree(backbone, reward / "model")
            save_file(ScalarHead(128).state_dict(), reward / "head.safetensors")
        (reward / "reward.json").write_text(json.dumps({"kind": kind, "backbone": str(backbone), "floor": 10.0}))
        Calibration(0.0, 1.0).save(reward / "calibration.json")
    return root


def edit_json(file: str, *keys: str, value: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        settings = inner = json.loads((folder / file).read_text())
        for key in keys[:-1]:
            inner = inner[key]
        assert inner[keys[-1]] != value
        inner[keys[-1]] = value
        (folder / file).write_text(json.dumps(settings))

    return edit


def edit_weights(file: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / file)
        last = sorted(tensors)[-1]
        tensors[last].view(-1)[-1] += 1e-3  # one number of all
        save_file(tensors, folder / file, metadata={"format": "pt"})

    return edit


def edit_text(file: str, before: str, after: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / file).read_text()
        assert before in text
        (folder / file).write_text(text.replace(before, after, 1))

    return edit


PROCESSOR = "processor_config.json"
MOVES = [
    ("implicit", edit_weights("reward/adapter/adapter_model.safetensors")),
    ("implicit", edit_json("reward/adapter/adapter_config.json", "lora_alpha", value=5)),
    ("implicit", edit_weights("backbone/model.safetensors")),
    ("implicit", edit_json("backbone/config.json", "text_config", "rms_norm_eps", value=1e-3)),
    ("implicit", edit_text("backbone/chat_template.jinja", "<|user|>", "<|user|> ")),
    ("implicit", edit_json("backbone/tokenizer.json", "pre_tokenizer", value=None)),
    ("implicit", edit_json("backbone/tokenizer_config.json", "eos_token", value="<pad>")),
    ("implicit", edit_json(f"backbone/{PROCESSOR}", "image_processor", "image_mean", value=[0.4, 0.5, 0.5])),
    ("implicit", edit_json(f"backbone/{PROCESSOR}", "num_additional_image_tokens", value=2)),
    ("implicit", edit_json("reward/reward.json", "floor", value=9.0)),
    ("implicit", edit_json("reward/calibration.json", "mean", value=0.25)),
    ("implicit", edit_json("reward/calibration.json", "deviation", value=2.0)),
    ("head", edit_weights("reward/head.safetensors")),
    ("head", edit_weights("reward/model/model.safetensors")),
    ("head", edit_text("reward/model/chat_template.jinja", "<|user|>", "<|user|> ")),
]
MOVES_NOT = [
    ("implicit", edit_json("reward/adapter/adapter_config.json", "base_model_name_or_path", value="elsewhere")),
    ("implicit", edit_json("backbone/config.json", "transformers_version", value="5.0.0")),
    ("implicit", edit_json("backbone/tokenizer.json", "padding", value=None)),
    ("implicit", edit_json("backbone/tokenizer.json", "truncation", value={
        "direction": "Right", "max_length": 999, "strategy": "LongestFirst", "stride": 0})),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), MOVES)
def test_everything_that_moves_a_score_moves_the_fingerprint(
    kind: str, change: Callable[[Path], None], made: Path, tmp_path: Path
) -> None:
    copy = moved(made / kind, tmp_path)
    before = name_of(copy)
    change(copy)
    assert name_of(copy) != before


@pytest.mark.parametrize(("kind", "change"), MOVES_NOT)
def test_what_moves_no_score_moves_no_fingerprint(
    kind: str, change: Callable[[Path], None], made: Path, tmp_path: Path
) -> None:
    copy = moved(made / kind, tmp_path)
    change(copy)
    assert name_of(copy) == name_of(made / kind)


def moved(original: Path, folder: Path) -> Path:
    """A copy elsewhere, backbone and all."""
    shutil.copytree(original, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "reward/reward.json").read_text())
    (folder / "reward/reward.json").write_text(json.dumps(settings | {"backbone": str(folder / "backbone")}))
    return folder


def test_a_fingerprint_has_sixteen_digits_and_is_the_same_in_every_process_and_order_of_keys(
    made: Path, tmp_path: Path
) -> None:
    name, copy = name_of(made / "implicit"), moved(made / "implicit", tmp_path)
    assert re.fullmatch("[0-9a-f]{16}", name)
    for file in [*copy.rglob("*config.json"), *copy.rglob("tokenizer.json")]:
        file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items()))))
    reward = str(copy / "reward")
    say = f"print(kinds.load_reward_model(Path({reward!r})).fingerprint)"
    code = f"from pathlib import Path; from mor.rewards import kinds; {say}"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


def test_a_tensors_name_shape_and_values_count_and_its_precision_does_not() -> None:
    values = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(3.0)}
    narrow = {name: value.to(torch.bfloat16) for name, value in reversed(values.items())}
    assert tensors_digest(values) == tensors_digest(narrow)  # 1, 2 and 3 have the same value in both
    assert tensors_digest(values) != tensors_digest(values | {"a": torch.tensor([3.0])})  # a shape
    assert tensors_digest(values) != tensors_digest({"a": values["b"], "b": values["a"]})  # a name


def test_the_padding_and_truncation_of_a_last_call_leave_the_fingerprint_alone() -> None:
    processor = load_processor(str(ZOO / "gemma3"))
    before = processor_digest(processor)
    processor.tokenizer(["a", "b c"], padding="max_length", truncation=True, max_length=8, padding_side="right")
    assert processor_digest(processor) == before


def test_an_adapter_that_is_no_safetensors_file_is_not_read(made: Path, tmp_path: Path) -> None:
    file = moved(made / "implicit", tmp_path) / "reward/adapter/adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is missing, and no other format is read"):
        name_of(tmp_path)


def test_the_keys_of_the_committed_benchmark_still_name_the_zoo() -> None:
    assert {name: weights_digest(f"models/zoo/{name}") for name in ("llava", "idefics3", "gemma3", "llava_med")} == {
        "llava": "e48c0210", "idefics3": "c861a863", "gemma3": "77efe270", "llava_med": "5f31606e",
    }  # fmt: skip
    assert weights_digest("org/name@main") == "e3b0c442"  # of nothing
