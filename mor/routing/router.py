"""The router: from a prompt's features to how much each client's opinion counts.

    w(x) = softmax(f(e(x)) / tau),   e(x) the frozen base VLM's mean-pooled last hidden state of image and question,
                                     f the nearest of the clients' means (``mor.routing.means``), or an MLP

It sees the prompt and never the answer, so a policy cannot talk its way to a lenient critic. The reference points
share its interface: ``uniform``; ``random``, the same weights in an order drawn for every prompt, so that top-k asks k
clients at random; ``static``, one learned weight a client whatever the prompt; ``oracle``, told which client owns which
category of prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import gelu

from mor.config import RouterKind
from mor.routing.means import MeansNetwork

KINDS: tuple[RouterKind, ...] = get_args(RouterKind)
LEARNED = tuple(kind for kind in KINDS if kind not in ("uniform", "random", "oracle"))


class RouterNetwork(nn.Module):
    """Features (N, features) -> logits (N, clients). Features are standardised by fixed statistics of public prompts."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, features: int, hidden: int, clients: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.hidden, self.output = nn.Linear(features, hidden), nn.Linear(hidden, clients)
        nn.init.zeros_(self.output.weight)  # starts uniform
        nn.init.zeros_(self.output.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.output(gelu(self.hidden((features - self.mean) / self.deviation)))
        return logits


class StaticNetwork(nn.Module):
    """The same logits for every prompt."""

    def __init__(self, clients: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(clients))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(features), -1)


def select(weights: torch.Tensor, *, top_k: int = 0, least: float = 0.0, present: torch.Tensor | None = None) -> torch.Tensor:
    """Keep the ``top_k`` largest weights of the clients that are ``present`` and renormalise, shape (N, clients).

    ``top_k`` 0 keeps all; weights below ``least`` times the row's largest go in any case, for who hardly counts need not be
    asked. Raises ``ValueError`` where no client is present.
    """
    if present is not None:
        if not present.any():
            raise ValueError("no client is present; a mixture needs at least one")
        weights = weights * present.float() + 1e-9 * present.float()  # a client alone counts, however small its weight was
    if 0 < top_k < weights.shape[1]:
        kept = torch.zeros_like(weights).scatter(1, weights.topk(top_k, dim=1).indices, 1.0)
        weights = weights * kept
    weights = weights * (weights >= least * weights.amax(dim=1, keepdim=True))
    return weights / weights.sum(dim=1, keepdim=True)


class Router:
    """Weights of the clients for prompts; ``network`` is None for uniform, random and oracle.

    A learned router gives no weight to clients that are ``excluded``, for they failed the control questions
    (``mor.routing.control``), did not answer those, or rank their own pairs by chance, or ``absent``: they did not answer
    when it was fitted.
    ``seed`` is of the random router's order.
    """

    def __init__(
        self,
        kind: str,
        clients: Sequence[str],
        network: nn.Module | None = None,
        *,
        temperature: float = 1.0,
        owners: dict[str, list[str]] | None = None,
        excluded: Sequence[str] = (),
        absent: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown router {kind!r}; expected one of {', '.join(KINDS)}")
        self.kind, self.clients, self.network = kind, list(clients), network
        self.temperature, self.owners, self.seed = temperature, owners or {}, seed
        self.excluded, self.absent = list(excluded), list(absent)

    @property
    def lost(self) -> list[bool]:
        """Whether each client is excluded or absent."""
        return [client in self.excluded or client in self.absent for client in self.clients]

    def with_network(self, network: nn.Module) -> Router:
        """The same router with another network."""
        return Router(
            self.kind, self.clients, network, temperature=self.temperature, owners=self.owners, excluded=self.excluded,
            absent=self.absent, seed=self.seed,
        )  # fmt: skip

    @torch.inference_mode()
    def weights(self, features: torch.Tensor, categories: Sequence[str | None] = ()) -> torch.Tensor:
        """Shape (N, clients), rows sum to 1; ``categories`` matter to the oracle alone."""
        if self.network is not None:
            learned: torch.Tensor = (self.network(features) / self.temperature).softmax(dim=1)
            return select(learned, present=torch.tensor([not lost for lost in self.lost])) if any(self.lost) else learned
        table = torch.ones(len(features), len(self.clients))
        if self.kind == "oracle":
            for row, category in zip(table, categories, strict=True):
                owners = self.owners.get(category or "", self.clients)
                row.copy_(torch.tensor([float(client in owners) for client in self.clients]))
        if self.kind == "random":
            table += 1e-6 * torch.rand(table.shape, generator=torch.Generator().manual_seed(self.seed))
        return table / table.sum(dim=1, keepdim=True)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        described = {
            "kind": self.kind, "clients": self.clients, "temperature": self.temperature, "owners": self.owners,
            "excluded": self.excluded, "absent": self.absent, "seed": self.seed,
        }  # fmt: skip
        (folder / "router.json").write_text(json.dumps(described, indent=2) + "\n")
        if self.network is not None:
            save_file({k: v.contiguous() for k, v in self.network.state_dict().items()}, folder / "router.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Router:
        described = json.loads((folder / "router.json").read_text())
        path = folder / "router.safetensors"
        network = network_from_state(load_file(path)) if path.exists() else None
        return cls(
            described["kind"], described["clients"], network,
            temperature=described["temperature"], owners=described["owners"], excluded=described["excluded"],
            absent=described["absent"], seed=described["seed"],
        )  # fmt: skip


def network_from_state(state: dict[str, torch.Tensor]) -> nn.Module:
    """Rebuild a router's network from its weights alone."""
    network: nn.Module
    if "logits" in state:
        network = StaticNetwork(len(state["logits"]))
    elif "projection" in state:
        features, components = state["projection"].shape
        network = MeansNetwork(features, components, len(state["bias"]))
    else:
        hidden, features = state["hidden.weight"].shape
        network = RouterNetwork(features, hidden, len(state["output.bias"]))
    network.load_state_dict(state)
    return network
