"""What the server of a federation has: a public base model, public prompts, and clients that it can ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mor.config import GrpoSettings, RouterSettings
from mor.data.public import PublicPrompt
from mor.federation.ledger import Ledger
from mor.federation.remote import RemoteClient
from mor.vlm.load import Vlm


@dataclass(frozen=True)
class Settings:
    """How the base is aligned; the sections are those of ``params.yaml``."""

    seed: int = 0
    router: RouterSettings = field(default_factory=RouterSettings)
    grpo: GrpoSettings = field(default_factory=GrpoSettings)
    batch_size: int = 100  # prompts that a model reads or answers at a time


@dataclass(frozen=True)
class Server:
    """``base`` is a model folder or ``org/name@revision``; ``features`` (N, F) are its states of the N ``prompts``.

    ``owners`` says whose prompts a category is, which the oracle router is told. All clients write into one ``ledger``.
    """

    base: str
    clients: Sequence[RemoteClient]
    prompts: Sequence[PublicPrompt]
    features: torch.Tensor
    settings: Settings
    ledger: Ledger
    owners: dict[str, list[str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [client.name for client in self.clients]

    def load_base(self) -> Vlm:
        """The base, read from disk once more: it is needed now and then, and is large."""
        return Vlm.load(self.base, self.settings.batch_size)


def prompt_features(base: Vlm, prompts: Sequence[PublicPrompt]) -> torch.Tensor:
    """What the router reads of prompts: the base's states, shape (N, F)."""
    return base.prompt_states([prompt.text for prompt in prompts], [prompt.image for prompt in prompts])
