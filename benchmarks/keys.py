"""Keys of results: what a row of the benchmark depends on. Nothing is measured again while its key stays the same.

Committed rows hold such keys, so everything here is fixed: the names of the settings and of the catalogue's fields, the
order of the parts, the digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Federation, Recipe
from benchmarks.settings import start_model
from mor.config import FedVqa, Params, Rewards
from mor.routing.router import LEARNED

# Committed rows were keyed when these sections of the settings had other names, which their keys go on to say.
_NAMED_BEFORE = {"fedvqa": "benchmark", "benchmark": "compare"}


def key_of(*parts: Any) -> str:
    """What a result depends on, as 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_fields).encode()).hexdigest()[:12]


def _fields(described: Any) -> dict[str, Any]:
    """The fields of one of the catalogue's dataclasses; the settings in its ``changes`` bear the names of committed rows."""
    fields = dict(vars(described))
    if "changes" in fields:
        parts = [(*name.partition("."), value) for name, value in fields["changes"].items()]
        fields["changes"] = {_NAMED_BEFORE.get(section, section) + dot + rest: value for section, dot, rest, value in parts}
    return fields


def weights_digest(model: str) -> str:
    """What tells a model folder's weights from others under the same name; of nothing for a hub id, which names its own.

    Committed rows of the benchmark were keyed with it: the first 8 digits of SHA-256 over names and bytes of the files.
    """
    return folder_digest(Path(model).absolute())


@cache
def folder_digest(folder: Path) -> str:
    """The digest of the model in ``folder``, an absolute path; read once a process."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in {".json", ".safetensors"}):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def data_key(seed: int, fedvqa: FedVqa, thin: Mapping[str, float], own: list[str]) -> str:
    """The data of a federation; ``own`` are its clients without those that only attack, which share it with the others."""
    return key_of(seed, {"benchmark": fedvqa.model_dump(), "thin": thin, "clients": own})


def reward_key(data: str, backbone: str, rewards: Rewards) -> str:
    """A reward model trained from ``backbone`` on the data of that key."""
    return key_of(data, backbone, weights_digest(backbone), rewards.model_dump())


def result_key(data: str, rewards: list[str], params: Params, federation: Federation, recipe: Recipe) -> str:
    """A method's result, given the keys of its data and its reward models and the method's own settings."""
    return key_of(data, rewards, relevant(params, recipe), federation, recipe)


def relevant(params: Params, recipe: Recipe) -> dict[str, Any]:
    """The settings that a method's result depends on, data and reward models apart."""
    values = params.model_dump()
    router, grpo = values["router"], values["grpo"]
    start = start_model(params.base, params.clients, recipe)
    found = {"start": start, "weights": weights_digest(start), "tokens": grpo["max_completion_tokens"]}
    if recipe.objective == "grpo":
        learned = params.router.kind in LEARNED
        found["router"] = router if learned else {name: router[name] for name in ("kind", "top_k", "least_weight")}
        if params.router.kind == "means":
            found["boundary"] = {name: values["boundary"][name] for name in ("epsilon", "delta", "prompts")}
        found["grpo"] = {name: value for name, value in grpo.items() if name != "coverage"}  # no client is absent here
    elif recipe.averages:
        backbones = {name: client.backbone for name, client in params.clients.items()}
        found |= {"averaging": values["benchmark"]["averaging"], "lora": grpo["lora"], "clients": backbones}
        found["beta"] = params.rewards.beta
    return found
