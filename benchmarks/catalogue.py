"""The methods that are compared, and the federations that they are compared on, as changes to ``params.yaml``.

A method of reward mixing is the pipeline itself with other settings, so that it differs from MoR in nothing else. A
method of parameter averaging (``objective``) trains adapters at the clients instead: in setting (a) of the base, which
every client must then be able to train; in (b) of the smallest of the clients' own models, which is what the weakest
client of a mixed federation can train.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

POOLED = "pooled"
WEAK = "models/weak"  # a backbone with a tenth of the parameters, trained for the comparison alone


@dataclass(frozen=True)
class Method:
    """``changes`` to the settings by dotted name; ``clients`` are those taken part, None for all."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    clients: tuple[str, ...] | None = None
    objective: Literal["none", "grpo", "sft", "dpo"] = "grpo"
    smallest: bool = False  # start from the smallest of the clients' models instead of the base
    proximal: bool = False  # FedProx's pull towards the last round's adapter
    again: bool = False  # the router is fitted anew before every round


def methods(clients: Iterable[str]) -> dict[str, Method]:
    """Every method by name, for a federation of ``clients``."""
    names = list(clients)
    uniform = {"router.kind": "uniform"}
    return {
        "base": Method(objective="none"),
        "mor": Method(),
        "mor_top1": Method({"router.top_k": 1}),
        "mor_preferences": Method({"router.kind": "preferences"}),
        "mor_preferences_top1": Method({"router.kind": "preferences", "router.top_k": 1}),
        "mor_online": Method({"router.kind": "online"}),
        "mor_online_top1": Method({"router.kind": "online", "router.top_k": 1}),
        "mor_frozen": Method({"router.refit_pairs": 0}),
        "mor_updated": Method({"router.refit_pairs": 0}, again=True),
        "uniform": Method(uniform),
        "min": Method(uniform | {"grpo.mixture": "min"}),
        "median": Method(uniform | {"grpo.mixture": "median"}),
        "variance": Method(uniform | {"grpo.mixture": "variance"}),
        "static": Method({"router.kind": "static"}),
        "random": Method({"router.kind": "random", "router.top_k": 1}),
        **{f"single_{name}": Method(uniform, clients=(name,)) for name in names},
        "oracle": Method({"router.kind": "oracle"}),
        "centralised": Method(uniform, clients=(POOLED,)),
        "fedavg_sft_a": Method(objective="sft"),
        "fedavg_sft_b": Method(objective="sft", smallest=True),
        "fedprox_sft_a": Method(objective="sft", proximal=True),
        "fedprox_sft_b": Method(objective="sft", proximal=True, smallest=True),
        "fedavg_dpo_a": Method(objective="dpo"),
        "fedavg_dpo_b": Method(objective="dpo", smallest=True),
    }


def headline(clients: Iterable[str]) -> list[str]:
    """The methods of the headline table, the longest first: at the end no core waits for another."""
    return [
        "base", "fedavg_dpo_b", "fedavg_dpo_a", "centralised", "fedavg_sft_b", "fedavg_sft_a", "mor", "mor_top1", "oracle",
        "uniform", *(f"single_{name}" for name in clients),
    ]  # fmt: skip


RATE_OF = {  # methods that differ from another in the router alone: they take its searched learning rate
    **dict.fromkeys(("mor_preferences", "mor_online", "mor_frozen", "mor_updated"), "mor"),
    **dict.fromkeys(("mor_preferences_top1", "mor_online_top1"), "mor_top1"),
}


@dataclass(frozen=True)
class Change:
    """From ``round`` on, ``client``'s reward model is broken, or (``joins``) it is there at last."""

    client: str
    round: int
    joins: bool = False


@dataclass(frozen=True)
class Setting:
    """A federation: ``changes`` to the settings; ``backbone`` for every client, ``backbones`` for some; ``thin`` keeps a share
    of a client's pairs; ``extra`` is a further client that prefers the worse answer in that share of pairs; ``inflate``
    multiplies a client's scores; ``change`` happens half way."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    backbones: Mapping[str, str] = field(default_factory=dict)
    thin: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)
    inflate: Mapping[str, float] = field(default_factory=dict)
    change: Change | None = None


ROUNDS, STEPS = 8, 40  # of the settings with a change: about as many steps as two rounds of 150


def settings(clients: Iterable[str], base: str) -> dict[str, Setting]:
    """Every setting by name, for a federation of ``clients`` around ``base``."""
    first, *others = clients
    last, short = [first, *others][-1], {"grpo.rounds": ROUNDS, "grpo.steps": STEPS}
    half = ROUNDS // 2 + 1
    return {
        "default": Setting(),
        "homogeneous": Setting(backbone=base),
        "agreeing": Setting({"fedvqa.styles": dict.fromkeys([first, *others], "terse")}),
        "unbalanced": Setting(thin=dict.fromkeys(others, 0.1)),
        "weak": Setting(thin={last: 0.1}, backbones={last: WEAK}),
        "hostile": Setting(extra={"hostile": 1.0}),
        "noise": Setting(extra={"noise": 0.5}),
        "inflated": Setting(inflate={first: 1000.0}),
        "broken": Setting(short, change=Change(last, half)),
        "newcomer": Setting(short, change=Change(last, half, joins=True)),
    }
