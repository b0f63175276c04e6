"""A reward model's name: SHA-256 over everything that moves its scores.

That is weights (adapter, tuned model, head and backbone), model settings, tokenizer, chat template, image processor,
calibration, kind and floor, each as it was *loaded*: a hub id's weights count as a folder's do, and neither the place nor
the layout of files counts. Names of keys are sorted, numbers below 32 bits are widened (which keeps their value), and
left out is what moves no score: where a model was loaded from, by which version, in which precision, and the padding and
truncation that a tokenizer was last called with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mor.vlm.load import Vlm

DIGITS = 16  # hexadecimal; 64 bits
_ORIGIN = {  # at any depth of any settings
    "_name_or_path", "name_or_path", "base_model_name_or_path", "revision", "transformers_version", "peft_version",
    "dtype", "torch_dtype", "inference_mode",
}  # fmt: skip
_LAST_CALL = {  # of a tokenizer's own settings: how it was last called, and from where it was loaded
    "padding", "truncation", "padding_side", "truncation_side", "truncation_strategy", "max_length", "stride",
    "pad_to_multiple_of", "pad_type_id", "pad_token_type_id", "is_local", "local_files_only",
}  # fmt: skip


def fingerprint(parts: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name ``parts``: numbers, texts and digests of larger things, by name."""
    return _digest(parts)[:DIGITS]


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of named tensors, whatever their order, device and precision."""
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run; large models have gigabytes
        return _digest(dict(zip(tensors, pool.map(_tensor_digest, tensors.values()), strict=True)))


def _tensor_digest(tensor: torch.Tensor) -> str:
    values = tensor.detach().cpu()
    values = values.float() if values.is_floating_point() and values.itemsize < 4 else values
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}\n".encode())
    digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Of a model's or adapter's settings as their library writes them."""
    return _digest(_cleaned(settings))


def vlm_digest(vlm: Vlm) -> str:
    """Of a model as it was loaded, with its processor; take it before an adapter is merged in."""
    return _digest(
        {
            "weights": tensors_digest(vlm.model.state_dict()),
            "settings": settings_digest(json.loads(vlm.model.config.to_json_string(use_diff=False))),
            "processor": processor_digest(vlm.processor),
        }
    )


def processor_digest(processor: Any) -> str:
    """Of tokenizer, chat template and image processor, as their own ``save_pretrained`` writes them."""
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return _digest({path.relative_to(folder).as_posix(): _file_digest(path) for path in files})


def _file_digest(path: Path) -> str:
    if path.suffix != ".json":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    settings = json.loads(path.read_bytes())
    if path.name.startswith("tokenizer"):
        settings = {key: value for key, value in settings.items() if key not in _LAST_CALL}
    return settings_digest(settings)


def _cleaned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _cleaned(inner) for key, inner in value.items() if key not in _ORIGIN}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return [_cleaned(inner) for inner in value] if isinstance(value, list | tuple) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
