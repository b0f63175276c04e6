"""A client in this process: any Python function that scores answers, behind the same boundary as all others."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mor.config import Boundary
from mor.errors import ConfigError
from mor.federation.ledger import Ledger
from mor.federation.remote import RemoteClient
from mor.federation.service import ClientService
from mor.vlm.load import Vlm

Score = Callable[[Sequence[str], Sequence[Image.Image], Sequence[str]], Sequence[float | None]]


@dataclass(frozen=True)
class FunctionReward:
    """A function as a reward model."""

    function: Score

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over the function's source, or its name where there is none."""
        try:
            source = inspect.getsource(self.function)
        except (OSError, TypeError):
            source = repr(getattr(self.function, "__qualname__", type(self.function)))
        return hashlib.sha256(source.encode()).hexdigest()[:16]

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> list[float | None]:
        return list(self.function(prompts, images, completions))


@dataclass(frozen=True)
class LocalClient:
    """A client by its ``reward``, which takes N prompts, images and answers and gives N scores (None for what it cannot score),
    on any scale.

    ``examples`` are prompts of its own with their images, from which the router learns what it knows about; the server sees
    one noised mean of them. A function *is* its client's taste, so it is taken to rank rightly.
    """

    name: str
    reward: Score
    examples: Sequence[tuple[str, Image.Image]]
    boundary: Boundary = field(default_factory=Boundary)

    def connect(self, base: Vlm, ledger: Ledger) -> RemoteClient:
        """The server's end of it; ``base`` is the public model, with which the client reads its examples.

        Raises ``ConfigError`` for a client without examples.
        """
        if not self.examples:
            raise ConfigError(f"client {self.name}: it has no examples; give some of its prompts with their images")
        prompts, images = zip(*self.examples, strict=True)
        service = ClientService(
            FunctionReward(self.reward),
            self.boundary,
            features=lambda: base.prompt_states(prompts, images),
            ranked_rightly=lambda: [True] * len(prompts),
            noise=np.random.default_rng(),
        )
        return RemoteClient(self.name, service.handle, ledger)
