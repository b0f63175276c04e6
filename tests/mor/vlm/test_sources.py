"""Where models come from: a folder, or a hub id at the revision that it names; never a pickle, never a repository's code."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from mor.addresses import split_revision
from mor.baselines.averaging import base_bytes
from mor.config import Lora, parse_params
from mor.errors import ConfigError
from mor.rewards.calibration import Calibration
from mor.rewards.implicit import train_implicit
from mor.rewards.kinds import load_reward_model
from mor.vlm import load
from mor.vlm.load import ModelError, Vlm, load_model, load_processor
from mor.vlm.lora import lora_config
from tests.mor.rewards.test_rewards import settings, style_pairs

ZOO = Path("models/zoo")
OLD, NEW = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("source", "split"),
    [
        ("org/name@main", ("org/name", "main")),
        (f"HuggingFaceTB/SmolVLM-256M-Instruct@{OLD}", ("HuggingFaceTB/SmolVLM-256M-Instruct", OLD)),
        ("org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("models/zoo", ("models/zoo", None)),
        ("models/missing", ("models/missing", None)),
        ("./name", ("./name", None)),
        ("../name", ("../name", None)),
        ("/name", ("/name", None)),
        ("~/name", ("~/name", None)),
        ("a/b/c", ("a/b/c", None)),
        ("name", ("name", None)),
        ("docs/decisions", ("docs/decisions", None)),  # a folder that is there
    ],
)
def test_a_hub_id_is_told_from_a_folder(source: str, split: tuple[str, str | None]) -> None:
    assert split_revision(source) == split


@pytest.mark.parametrize("source", ["org/name", "org/name@"])
@pytest.mark.parametrize("key", ["base", "clients.radiology.backbone"])
def test_a_hub_id_without_a_revision_names_the_key_and_the_fix(key: str, source: str) -> None:
    values = copy.deepcopy(yaml.safe_load(Path("params.yaml").read_text()))
    values |= {"base": source} if key == "base" else {"clients": {"radiology": {"backbone": source}}}
    with pytest.raises(ConfigError, match=rf"{key}: .*append @<commit>.*@main is allowed but moves.*got '{source}'"):
        parse_params(values)
    pinned = source.rstrip("@") + "@main"
    assert parse_params(json.loads(json.dumps(values).replace(f'"{source}"', f'"{pinned}"')))


@pytest.mark.parametrize("read", [load_model, load_processor])
def test_a_missing_folder_gets_the_folders_error(read: Any) -> None:
    with pytest.raises(ModelError, match=r"models/missing: no such folder; expected a Hugging Face folder, or a hub id"):
        read("models/missing")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub with two commits of ``org/name``; ``main`` is the new one, the other is tagged ``v1``."""
    repository = tmp_path / "hub" / "models--org--name"
    for commit, model in ((OLD, "llava"), (NEW, "gemma3")):
        shutil.copytree(ZOO / model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(NEW)
    (repository / "refs" / "v1").write_text(OLD)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


@pytest.mark.parametrize(("revision", "model"), [(OLD, "llava"), ("v1", "llava"), (NEW, "gemma3"), ("main", "gemma3")])
def test_model_and_processor_are_those_of_the_revision(hub: Path, revision: str, model: str) -> None:
    ours, theirs = Vlm.load(f"org/name@{revision}"), Vlm.load(f"models/zoo/{model}")
    weights = theirs.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in ours.model.state_dict().items())
    assert ours.processor.tokenizer.get_vocab() == theirs.processor.tokenizer.get_vocab()
    assert type(ours.processor) is type(theirs.processor)
    assert base_bytes(f"org/name@{revision}") == (ZOO / model / "model.safetensors").stat().st_size


@pytest.mark.parametrize("rank", [0, 2])
def test_a_reward_model_is_trained_and_loaded_at_its_revision(hub: Path, rank: int, tmp_path: Path) -> None:
    pairs, images = style_pairs(4)
    chosen = settings(steps=2, batch_size=2, lora=Lora(rank=rank, alpha=2, target_modules="all-linear"))
    source, folder = f"org/name@{OLD}", tmp_path / "reward"
    at_hub, _ = train_implicit(source, pairs, images, chosen, seed=0, checkpoints=tmp_path / "a")
    in_folder, _ = train_implicit("models/zoo/llava", pairs, images, chosen, seed=0, checkpoints=tmp_path / "b")
    expected = in_folder.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in at_hub.state_dict().items())
    at_hub.save_pretrained(str(folder / ("adapter" if rank else "model")))
    if rank:
        kept = json.loads((folder / "adapter/adapter_config.json").read_text())
        assert (kept["base_model_name_or_path"], kept["revision"]) == ("org/name", OLD)
    else:
        load_processor(source).save_pretrained(str(folder / "model"))
    (folder / "reward.json").write_text(json.dumps({"kind": "implicit", "backbone": source, "floor": 10.0}))
    Calibration(0.0, 1.0).save(folder / "calibration.json")
    here, there = load_reward_model(folder), load_reward_model(folder, backbone="models/zoo/llava")
    assert here.fingerprint == there.fingerprint
    asked = [p.prompt for p in pairs], images, [p.chosen for p in pairs]
    assert here.score(*asked) == there.score(*asked)
    tensors = load_file(hub / "snapshots" / OLD / "model.safetensors")
    tensors[min(tensors)].view(-1)[0] += 1e-3
    save_file(tensors, hub / "snapshots" / OLD / "model.safetensors", metadata={"format": "pt"})
    assert load_reward_model(folder).fingerprint != here.fingerprint


def test_a_folder_named_as_a_hub_id_does_not_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ZOO / "llava", tmp_path / "org/name")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="the folder org/name here would be loaded in its place"):
        load_model(f"org/name@{OLD}")
    assert load_model("org/name")


def test_an_adapters_settings_keep_the_revision_of_their_base() -> None:
    lora = Lora(rank=2, alpha=2, target_modules="all-linear")
    assert [lora_config(lora, base).revision for base in (f"org/name@{OLD}", "models/zoo/llava", None)] == [OLD, None, None]  # type: ignore[union-attr]


def test_every_load_trusts_no_code_and_reads_safetensors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []

    class Loader:
        @staticmethod
        def from_pretrained(**arguments: Any) -> Any:
            seen.append(arguments)
            raise OSError("enough seen")

    monkeypatch.setattr(load, "AutoModelForImageTextToText", Loader)
    monkeypatch.setattr(load, "AutoProcessor", Loader)
    monkeypatch.setattr(load, "find_adapter_config_file", lambda *_, **__: None)
    for read in (load_model, load_processor):
        with pytest.raises(ModelError, match="enough seen"):
            read(f"org/name@{OLD}")
    assert [(a["pretrained_model_name_or_path"], a["revision"], a["trust_remote_code"]) for a in seen] == [
        ("org/name", OLD, False)
    ] * 2
    assert seen[0]["use_safetensors"] is True


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ZOO / "llava", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot load: .*model.safetensors.*with safetensors weights"):
        load_model(str(folder))


def test_a_repositorys_own_code_is_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ZOO / "llava", folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for file in ("config.json", "processor_config.json"):
        described = json.loads((folder / file).read_text())
        names = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor")
        described |= {"model_type": "evil", "processor_class": "Evil", "auto_map": dict.fromkeys(names, "evil.Evil")}
        (folder / file).write_text(json.dumps(described))
    for read in (load_model, load_processor):
        with pytest.raises(ModelError):
            read(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_peft_adapter_is_no_backbone(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/name"}))
    with pytest.raises(ModelError, match=r"is a PEFT adapter.*merge it into its base"):
        load_model(str(tmp_path))
