"""Both ends of the boundary.

``ClientService`` is what runs at a client: it holds the private data, the reward model and the answer key, and turns a
request's bytes into a reply's bytes. ``RemoteClient`` is the server's view: it knows only a name and a transport.
Every transport carries the same bytes, so in-process and HTTP clients answer alike to the bit and cost the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from mor.data.schema import Answer, Preference
from mor.federation import messages as m
from mor.federation.ledger import Ledger
from mor.rewards.model import RewardModel
from mor.routing.fit import local_update

Transport = Callable[[bytes], bytes]


class ClientError(RuntimeError):
    """A client did not answer, or answered with a failure."""


@dataclass
class ClientService:
    """A client's side. ``states`` are the router features of its validation prompts, shape (N, features), computed
    with the public base model; ``index`` is the client's place in the router's output."""

    reward_model: RewardModel
    index: int
    validation: Sequence[Preference] = ()
    images: Sequence[Image.Image] = ()
    states: Callable[[], torch.Tensor] = field(default=lambda: torch.zeros(0, 0))
    answers: dict[str, Answer] = field(default_factory=dict)
    _ranked_rightly: torch.Tensor | None = None
    _states: torch.Tensor | None = None

    def handle(self, data: bytes) -> bytes:
        """One request's bytes to one reply's bytes; problems become ``Failure``, never a half answer."""
        try:
            request = m.decode_request(data)
            return m.encode(self._answer(request))
        except Exception as error:  # the boundary: whatever goes wrong here is the server's to record
            return m.encode(m.Failure(f"{type(error).__name__}: {error}"))

    def _answer(self, request: m.Request) -> m.Reply:
        match request:
            case m.ScoreRequest():
                return self._score(request)
            case m.CompareRequest():
                return m.CompareReply(
                    [self._vote(*row) for row in zip(request.ids, request.first, request.second, strict=True)]
                )
            case m.AnchorRequest():
                return self._anchors(request.count)
            case m.RouterRequest():
                return self._update_router(request)

    def _score(self, request: m.ScoreRequest) -> m.ScoreReply:
        images = [m.image_from_bytes(data) for data in request.images]
        rows = [(*request.prompts[prompt], text) for prompt, text in request.completions]
        scores = self.reward_model.score(
            [prompt for _, prompt, _ in rows], [images[image] for image, _, _ in rows], [text for _, _, text in rows]
        )
        return m.ScoreReply.of(scores, self.reward_model.fingerprint)

    def _vote(self, prompt_id: str, first: str, second: str) -> bool | None:
        """The annotator's choice: the preferred answer over one that is merely right, and that over the rest."""
        key = self.answers.get(prompt_id)
        if key is None:
            return None
        worth = [2 * (text.strip() == key.answer) + (text.strip() in {key.answer, *key.accepted}) for text in (first, second)]
        return None if worth[0] == worth[1] else worth[0] > worth[1]

    def _anchors(self, count: int) -> m.AnchorReply:
        shared = self.validation[:count]
        return m.AnchorReply(
            [m.image_bytes(image) for image in self.images[:count]],
            [pair.prompt for pair in shared],
            [pair.chosen for pair in shared],
            [pair.rejected for pair in shared],
        )

    def ranked_rightly(self) -> torch.Tensor:
        """Whether the reward model ranks each private validation pair as its annotator does, shape (N,) of 0 and 1."""
        if self._ranked_rightly is None:
            prompts, images = [pair.prompt for pair in self.validation], list(self.images)
            chosen = self.reward_model.score(prompts, images, [pair.chosen for pair in self.validation])
            rejected = self.reward_model.score(prompts, images, [pair.rejected for pair in self.validation])
            self._ranked_rightly = torch.tensor(
                [float(c is not None and r is not None and c > r) for c, r in zip(chosen, rejected, strict=True)]
            )
        return self._ranked_rightly

    def _update_router(self, request: m.RouterRequest) -> m.RouterReply:
        if self._states is None:
            self._states = self.states()
        delta = local_update(
            load_tensors(request.router),
            self._states,
            self.ranked_rightly(),
            self.index,
            steps=request.local_steps,
            learning_rate=request.learning_rate,
        )
        return m.RouterReply(delta.numpy().astype(np.float16).tobytes(), len(self._states))


@dataclass
class RemoteClient:
    """The server's view of a client: a name, a way to reach it, and the ledger that counts every byte.

    ``fingerprint`` is that of the reward model that last gave scores, None before.
    """

    name: str
    transport: Transport
    ledger: Ledger
    fingerprint: str | None = None

    def _ask(self, request: m.Request) -> m.Reply:
        sent = m.encode(request)
        received = self.transport(sent)
        self.ledger.record(self.name, type(request).__name__.removesuffix("Request").lower(), up=len(received), down=len(sent))
        try:
            reply = m.decode_reply(received)
        except m.MessageError as error:
            raise ClientError(f"client {self.name}: {error}") from None
        if isinstance(reply, m.Failure):
            raise ClientError(f"client {self.name}: {reply.reason}")
        return reply

    def _expect(self, reply: m.Reply, n: int, values: Sequence[object]) -> None:
        if len(values) != n:
            raise ClientError(f"client {self.name}: {type(reply).__name__} has {len(values)} values; expected {n}")

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> list[float | None]:
        """One calibrated score or None a completion; raises ``ClientError``."""
        pictures: dict[int, tuple[int, bytes]] = {}
        asked: dict[tuple[int, str], int] = {}
        rows: dict[tuple[int, str], int] = {}
        places = []
        for prompt, image, completion in zip(prompts, images, completions, strict=True):
            index, _ = pictures.setdefault(
                id(image), (len(pictures), m.image_bytes(image) if id(image) not in pictures else b"")
            )
            row = (asked.setdefault((index, prompt), len(asked)), completion)
            places.append(rows.setdefault(row, len(rows)))
        reply = self._ask(m.ScoreRequest([data for _, data in pictures.values()], list(asked), list(rows)))
        if not isinstance(reply, m.ScoreReply):
            raise ClientError(f"client {self.name}: expected ScoreReply, got {type(reply).__name__}")
        try:
            scores = reply.values()
        except ValueError as error:
            raise ClientError(f"client {self.name}: ScoreReply holds no float16: {error}") from None
        self._expect(reply, len(rows), scores)
        self.fingerprint = reply.fingerprint
        return [scores[place] for place in places]

    def compare(self, ids: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[bool | None]:
        """The annotator's "A or B?" on public prompts; raises ``ClientError``."""
        reply = self._ask(m.CompareRequest(list(ids), list(first), list(second)))
        if not isinstance(reply, m.CompareReply):
            raise ClientError(f"client {self.name}: expected CompareReply, got {type(reply).__name__}")
        self._expect(reply, len(ids), reply.votes)
        return reply.votes

    def anchors(self, count: int) -> tuple[list[str], list[Image.Image], list[str], list[str]]:
        """Prompts, images, chosen and rejected answers that the client agreed to share; raises ``ClientError``."""
        reply = self._ask(m.AnchorRequest(count))
        if not isinstance(reply, m.AnchorReply):
            raise ClientError(f"client {self.name}: expected AnchorReply, got {type(reply).__name__}")
        return reply.prompts, [m.image_from_bytes(data) for data in reply.images], reply.chosen, reply.rejected

    def router_update(self, router: bytes, local_steps: int, learning_rate: float) -> tuple[torch.Tensor, int]:
        """The client's change of the router's flattened weights and how many prompts it rests on."""
        reply = self._ask(m.RouterRequest(router, local_steps, learning_rate))
        if not isinstance(reply, m.RouterReply):
            raise ClientError(f"client {self.name}: expected RouterReply, got {type(reply).__name__}")
        return torch.from_numpy(np.frombuffer(reply.delta, dtype=np.float16).astype(np.float32)), reply.examples
