"""The kinds of reward model: how each is trained, written and read.

A new kind is a module of its own, its name in ``mor.config.RewardKind``, and a line in ``trainer_of`` and in ``SCORERS``.

On disk a reward model is ``reward.json`` (kind, backbone), ``calibration.json``, and either a PEFT folder ``adapter/``
or full weights ``model/``; the head adds ``head.safetensors``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from PIL import Image
from safetensors.torch import load_file, save_file

from mor.config import RewardKind, Rewards
from mor.data.schema import Preference
from mor.rewards.calibration import Calibration
from mor.rewards.fingerprint import fingerprint, settings_digest, tensors_digest, vlm_digest
from mor.rewards.model import CalibratedReward, HeadReward, ImplicitReward, ScalarHead, Scorer
from mor.vlm.load import ModelError, Vlm, load_processor

Parts = dict[str, Any]  # what a reward model's fingerprint covers


def trainer_of(kind: RewardKind) -> Callable[..., tuple[Any, ScalarHead | None]]:
    """What trains that kind and returns model and head; TRL is imported here and not where models are only read."""
    match kind:
        case "implicit":
            from mor.rewards.implicit import train_implicit

            return train_implicit
        case "head":
            from mor.rewards.head import train_head

            return train_head


def train_reward_model(
    folder: Path,
    backbone: str,
    pairs: Sequence[Preference],
    images: Sequence[Image.Image],
    settings: Rewards,
    *,
    seed: int,
    checkpoints: Path,
) -> None:
    """Train ``settings.kind`` and write it to ``folder``, uncalibrated; resumes from ``checkpoints`` after an interruption."""
    model, head = trainer_of(settings.kind)(backbone, pairs, images, settings, seed=seed, checkpoints=checkpoints)
    folder.mkdir(parents=True, exist_ok=True)
    described = {"kind": settings.kind, "backbone": backbone, "floor": settings.floor}
    (folder / "reward.json").write_text(json.dumps(described, indent=2) + "\n")
    model.save_pretrained(str(folder / ("adapter" if settings.lora.rank else "model")))
    if not settings.lora.rank:
        load_processor(backbone).save_pretrained(str(folder / "model"))
    if head is not None:
        save_file(head.state_dict(), folder / "head.safetensors")
    Calibration(0.0, 1.0).save(folder / "calibration.json")


def load_reward_model(folder: Path, batch_size: int = 128, backbone: str | None = None) -> CalibratedReward:
    """Read a reward model from ``folder``; raises ``ModelError`` where a part is missing.

    ``backbone`` says where its backbone is now, if that was moved since the training.
    """
    try:
        settings: dict[str, Any] = json.loads((folder / "reward.json").read_text())
        calibration = Calibration.load(folder / "calibration.json")
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: {Path(error.filename).name} is missing; train it with `dvc repro`") from None
    backbone = backbone or str(settings["backbone"])
    parts: Parts = {"kind": settings["kind"], "calibration": asdict(calibration)}
    if settings["kind"] not in SCORERS:
        raise ModelError(f"{folder}: its kind is {settings['kind']!r}; expected {' or '.join(SCORERS)}")
    tuned = _tuned(folder, backbone, batch_size, parts)
    scorer = SCORERS[settings["kind"]](folder, settings, tuned, backbone, parts)
    return CalibratedReward(scorer, calibration, fingerprint(parts))


def _implicit(folder: Path, settings: dict[str, Any], tuned: Vlm, backbone: str, parts: Parts) -> Scorer:
    reference = Vlm.load(backbone, tuned.batch_size)
    parts |= {"floor": settings["floor"]} | ({} if "backbone" in parts else {"backbone": vlm_digest(reference)})
    return ImplicitReward(tuned, reference, settings["floor"])


def _head(folder: Path, settings: dict[str, Any], tuned: Vlm, backbone: str, parts: Parts) -> Scorer:
    weights = load_file(folder / "head.safetensors")
    parts["head"] = tensors_digest(weights)
    head = ScalarHead(tuned.model.config.get_text_config().hidden_size).to(tuned.model.device)
    head.load_state_dict(weights)
    return HeadReward(tuned, head)


# (folder, reward.json, tuned model, backbone, parts to add to) -> scorer
SCORERS: dict[RewardKind, Callable[[Path, dict[str, Any], Vlm, str, Parts], Scorer]] = {
    "implicit": _implicit,
    "head": _head,
}


def _tuned(folder: Path, backbone: str, batch_size: int, parts: Parts) -> Vlm:
    """The tuned model: the backbone with the folder's adapter in it, or the folder's own; adds their digests to ``parts``."""
    adapter = folder / "adapter"
    if not adapter.exists():
        tuned = Vlm.load(str(folder / "model"), batch_size)
        parts["model"] = vlm_digest(tuned)
        return tuned
    if not (adapter / SAFETENSORS_WEIGHTS_NAME).exists():
        raise ModelError(
            f"{adapter}: {SAFETENSORS_WEIGHTS_NAME} is missing, and no other format is read; train it with `dvc repro`"
        )
    loaded = Vlm.load(backbone, batch_size)
    parts["backbone"] = vlm_digest(loaded)
    model = PeftModel.from_pretrained(loaded.model, str(adapter))
    parts["adapter"] = {
        "weights": tensors_digest(load_file(adapter / SAFETENSORS_WEIGHTS_NAME)),
        "settings": settings_digest(model.peft_config["default"].to_dict()),
    }
    return Vlm(model.merge_and_unload().eval(), loaded.processor, batch_size)
