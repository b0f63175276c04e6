"""The methods that are compared, and the settings that they are compared in: names, words and what is run, in one table each.

A method of reward mixing is the pipeline itself with other settings, so that it differs from MoR in nothing else. A
method of parameter averaging (``objective``) trains adapters at the clients instead: in (a) of the base, which every
client must then be able to train; in (b) of the smallest of the clients' own models, which is what the weakest client of
a mixed federation can train.

The names of the fields of ``Recipe``, ``Federation`` and ``ClientChange`` are part of the keys of committed results
(``benchmarks.keys``): renaming one makes them stale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

DEFAULT, SEARCH = "default", "search"  # the search for learning rates has rows of its own and is shown as a setting
SINGLE, SINGLE_BEST = "single_", "single_best"
POOLED = "pooled"  # stands for a client that holds the pairs of all
WEAK = "models/weak"  # a backbone with a tenth of the parameters, trained for the benchmark alone
ROUNDS, STEPS = 8, 40  # of the settings with a change: about as many steps as two rounds of 150


@dataclass(frozen=True)
class Recipe:
    """How a method is trained: ``changes`` to the settings by dotted name; ``clients`` are those taken part, None for all."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    clients: tuple[str, ...] | None = None
    objective: Literal["none", "grpo", "sft", "dpo"] = "grpo"
    smallest: bool = False  # start from the smallest of the clients' models instead of the base
    proximal: bool = False  # FedProx's pull towards the last round's adapter
    again: bool = False  # the router is fitted anew before every round

    @property
    def averages(self) -> bool:
        """Whether the clients train adapters that the server averages, instead of reward models."""
        return self.objective in ("sft", "dpo")


@dataclass(frozen=True)
class ClientChange:
    """From ``round`` on, ``client``'s reward model is broken, or (``joins``) it is there at last."""

    client: str
    round: int
    joins: bool = False


@dataclass(frozen=True)
class Federation:
    """The clients of a setting: ``changes`` to the settings; ``backbone`` for every client, ``backbones`` for some; ``thin``
    keeps a share of a client's pairs; ``extra`` is a further client that prefers the worse answer in that share of pairs;
    ``inflate`` multiplies a client's scores; ``change`` happens half way."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    backbones: Mapping[str, str] = field(default_factory=dict)
    thin: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, float] = field(default_factory=dict)
    inflate: Mapping[str, float] = field(default_factory=dict)
    change: ClientChange | None = None


class Method(NamedTuple):
    """How a method is shown (its label, its group, what it does), and how it is trained; None for one that is only shown."""

    label: str
    group: str
    meaning: str
    recipe: Recipe | None = None


MOR, MIXTURES, SINGLES, AVERAGING_A, AVERAGING_B, REFERENCES, OTHERS = GROUPS = (
    "MoR", "reward mixtures", "single clients", "parameter averaging (a)", "parameter averaging (b)", "reference points",
    "other methods",
)  # fmt: skip
_UNIFORM = {"router.kind": "uniform"}
_ANCHORS, _ONLINE = {"router.kind": "preferences"}, {"router.kind": "online"}
_TOP_1, _NO_REFIT = {"router.top_k": 1}, {"router.refit_pairs": 0}
_TOP_1_MEANING = "The same, but only the client with the largest weight is asked."
_LEARN = "Clients train LoRA adapters on the chosen answers, the server averages them every round."
_PULL = "The same, with a pull towards the shared adapter in training."
_DPO = "The same, but by DPO on the pairs (FedDPO)."
_A = "(a): every client trains the base itself, which it must then hold."
_B = "(b): the shared model is the smallest of the clients' models, all that the weakest of them can train."
METHODS: dict[str, Method] = {
    "base": Method("base", REFERENCES, "The base model before any alignment.", Recipe(objective="none")),
    "mor": Method(
        "MoR", MOR, "A router made of one private mean a client weighs all clients' scores prompt by prompt.", Recipe()
    ),
    "mor_top1": Method(
        "MoR top-1", MOR, "The same router, but only the client with the largest weight is asked.", Recipe(_TOP_1)
    ),
    "mor_preferences": Method(
        "MoR anchors", MOR, "The router is fitted on a few pairs that the clients agreed to share.", Recipe(_ANCHORS)
    ),
    "mor_preferences_top1": Method("MoR anchors top-1", MOR, _TOP_1_MEANING, Recipe(_ANCHORS | _TOP_1)),
    "mor_online": Method(
        "MoR online", MOR, "The router learns from A-or-B answers alone, at first about the base's answers.", Recipe(_ONLINE)
    ),
    "mor_online_top1": Method("MoR online top-1", MOR, _TOP_1_MEANING, Recipe(_ONLINE | _TOP_1)),
    "mor_frozen": Method("MoR, no refit", MOR, "The router stays as it was first fitted.", Recipe(_NO_REFIT)),
    "mor_updated": Method(
        "MoR, fitted anew", MOR, "The router is fitted anew before every round; no A-or-B questions.",
        Recipe(_NO_REFIT, again=True),
    ),
    "uniform": Method("uniform mean", MIXTURES, "All clients' scores count the same.", Recipe(_UNIFORM)),
    "min": Method("minimum", MIXTURES, "The least content client decides.", Recipe(_UNIFORM | {"grpo.mixture": "min"})),
    "median": Method("median", MIXTURES, "The median client decides.", Recipe(_UNIFORM | {"grpo.mixture": "median"})),
    "static": Method(
        "static weights", MIXTURES, "One learned weight a client, whatever the prompt.", Recipe({"router.kind": "static"})
    ),
    "random": Method(
        "random client", MIXTURES, "One client, drawn anew for every prompt, decides (as in FedGRPO).",
        Recipe({"router.kind": "random"} | _TOP_1),
    ),
    "variance": Method(
        "variance weights", MIXTURES, "A client counts by how much it tells a group's answers apart.",
        Recipe(_UNIFORM | {"grpo.mixture": "variance"}),
    ),
    SINGLE_BEST: Method("best single (hindsight)", SINGLES, "The one of these with the best mean, chosen with hindsight."),
    "fedavg_sft_a": Method("FedAvg-SFT (a)", AVERAGING_A, f"{_LEARN} {_A}", Recipe(objective="sft")),
    "fedprox_sft_a": Method("FedProx-SFT (a)", AVERAGING_A, _PULL, Recipe(objective="sft", proximal=True)),
    "fedavg_dpo_a": Method("FedAvg-DPO (a)", AVERAGING_A, _DPO, Recipe(objective="dpo")),
    "fedavg_sft_b": Method("FedAvg-SFT (b)", AVERAGING_B, f"{_LEARN} {_B}", Recipe(objective="sft", smallest=True)),
    "fedprox_sft_b": Method("FedProx-SFT (b)", AVERAGING_B, _PULL, Recipe(objective="sft", proximal=True, smallest=True)),
    "fedavg_dpo_b": Method("FedAvg-DPO (b)", AVERAGING_B, _DPO, Recipe(objective="dpo", smallest=True)),
    "oracle": Method(
        "oracle routing", REFERENCES, "MoR told whose question each one is: the best that a router could do.",
        Recipe({"router.kind": "oracle"}),
    ),
    "centralised": Method(
        "centralised", REFERENCES, "One reward model on the pairs of all clients in one place.",
        Recipe(_UNIFORM, clients=(POOLED,)),
    ),
}  # fmt: skip
RATE_OF = {  # methods that differ from another in the router alone: they take its searched learning rate
    **dict.fromkeys(("mor_preferences", "mor_online", "mor_frozen", "mor_updated"), "mor"),
    **dict.fromkeys(("mor_preferences_top1", "mor_online_top1"), "mor_top1"),
}

SETTINGS = {  # what each is; ``federations`` says how it is made
    DEFAULT: "Three clients with their own architectures and house styles; no answer pleases two of them.",
    "homogeneous": "Every client has the base's own architecture, so that parameters can be averaged.",
    "agreeing": "All clients prefer the same style: nothing to route.",
    "unbalanced": "The first client keeps all its pairs, the others a tenth.",
    "weak": "One client has a tenth of its pairs and a model with a tenth of the parameters.",
    "hostile": "A further client prefers the worse answer of every pair.",
    "noise": "A further client prefers at random.",
    "inflated": "One client reports scores a thousand times too large.",
    "broken": "One client's reward model breaks during the run.",
    "newcomer": "A client joins during the run.",
    SEARCH: "Every method with several learning rates, on a seed of its own.",
}


def find_method(name: str) -> Method:
    """Any method by name: a single client's is made from the client's name, one not known here has its name alone."""
    if name in METHODS:
        return METHODS[name]
    from mor.text import words  # draws, which takes long to import and no command line needs

    if name.startswith(SINGLE):
        client = name.removeprefix(SINGLE)
        meaning = f"GRPO on the reward model of {words(client)} and no other."
        return Method(f"{words(client)} alone", SINGLES, meaning, Recipe(_UNIFORM, clients=(client,)))
    return Method(words(name), OTHERS, "")


def display_order(method: str) -> tuple[int, int, str]:
    """A key that sorts methods' names into the order to show them."""
    known = list(METHODS)
    return GROUPS.index(find_method(method).group), known.index(method) if method in known else -1, method


def recipes(clients: Iterable[str]) -> dict[str, Recipe]:
    """What can be run with ``clients``, by the method's name."""
    own = {f"{SINGLE}{client}": find_method(f"{SINGLE}{client}") for client in clients}
    return {name: method.recipe for name, method in (METHODS | own).items() if method.recipe}


def federations(clients: Iterable[str], base: str) -> dict[str, Federation]:
    """Every federation that ``clients`` around ``base`` are compared in, by the setting's name."""
    names = list(clients)
    first, last = names[0], names[-1]
    short, half = {"grpo.rounds": ROUNDS, "grpo.steps": STEPS}, ROUNDS // 2 + 1
    return {
        DEFAULT: Federation(),
        "homogeneous": Federation(backbone=base),
        "agreeing": Federation({"fedvqa.styles": dict.fromkeys(names, "terse")}),
        "unbalanced": Federation(thin=dict.fromkeys(names[1:], 0.1)),
        "weak": Federation(thin={last: 0.1}, backbones={last: WEAK}),
        "hostile": Federation(extra={"hostile": 1.0}),
        "noise": Federation(extra={"noise": 0.5}),
        "inflated": Federation(inflate={first: 1000.0}),
        "broken": Federation(short, change=ClientChange(last, half)),
        "newcomer": Federation(short, change=ClientChange(last, half, joins=True)),
    }


def headline_methods(clients: Iterable[str]) -> list[str]:
    """The methods of the headline table, the longest first: at the end no core waits for another."""
    return [
        "base", "fedavg_dpo_b", "fedavg_dpo_a", "centralised", "fedavg_sft_b", "fedavg_sft_a", "mor", "mor_top1", "oracle",
        "uniform", *(f"{SINGLE}{name}" for name in clients),
    ]  # fmt: skip
