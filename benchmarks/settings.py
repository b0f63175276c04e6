"""Settings of a run of the benchmark: those of ``params.yaml`` with the changes of a federation and of a method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.catalogue import Federation, Recipe
from mor.config import Client, Params, parse_params


def with_changes(params: Params, changes: Mapping[str, Any]) -> Params:
    """``params`` with other values for dotted names, validated again; raises ``ConfigError`` as those of a file."""
    values = params.model_dump(exclude_none=True)
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[last] = value
    return parse_params(values, "benchmark")


def federation_params(params: Params, federation: Federation, seed: int) -> Params:
    """Settings that all methods of a federation share: its clients with their backbones, and its changes."""
    clients = {
        name: {"backbone": federation.backbones.get(name, federation.backbone or client.backbone)}
        for name, client in params.clients.items()
    } | {name: {"backbone": params.base} for name in federation.extra}
    return with_changes(params, {**federation.changes, "seed": seed, "clients": clients})


def method_params(shared: Params, recipe: Recipe, factor: float) -> Params:
    """Settings of one method's run; ``factor`` multiplies its learning rate."""
    changes = dict(recipe.changes)
    if recipe.clients is not None:
        clients = shared.model_dump(exclude_none=True)["clients"]
        changes["clients"] = {name: clients.get(name, {"backbone": shared.base}) for name in recipe.clients}
    name, rate = learning_rate(shared, recipe)
    return with_changes(shared, changes | {name: rate * factor})


def learning_rate(params: Params, recipe: Recipe) -> tuple[str, float]:
    """The setting that is a method's learning rate, by its dotted name, and its value."""
    if recipe.averages:
        return "benchmark.averaging.learning_rate", params.benchmark.averaging.learning_rate
    return "grpo.learning_rate", params.grpo.learning_rate


def start_model(base: str, clients: Mapping[str, Client], recipe: Recipe) -> str:
    """The model that a method starts from: the base, or of the clients' backbones the one with the fewest bytes of weights."""
    if not recipe.smallest:
        return base
    sizes = {c.backbone: sum(p.stat().st_size for p in Path(c.backbone).glob("*.safetensors")) for c in clients.values()}
    return min(sizes, key=sizes.__getitem__)
