"""The server's view of a client: a name, a way to reach it, and nothing else.

Every transport carries the same bytes, so in-process and HTTP clients answer alike to the bit and cost the same payload.
What a client says is believed only as far as ``mor.federation.messages`` lets it pass; all else is a ``ClientError``, and
who causes one is absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mor.data.pictures import png_bytes
from mor.errors import Unavailable
from mor.federation import messages as m
from mor.federation.ledger import Ledger

Transport = Callable[[bytes], bytes]
R = TypeVar("R", bound=m.Reply)


class ClientError(Unavailable, RuntimeError):
    """A client did not answer, or with something that is no answer."""


class BudgetSpentError(ClientError):
    """A client has answered as much as it will in a run."""


@dataclass(frozen=True)
class Anchors:
    """Preference pairs that a client shares."""

    prompts: list[str]
    images: list[Image.Image]
    chosen: list[str]
    rejected: list[str]


@dataclass
class RemoteClient:
    """A client by its name; the ledger counts every byte.

    ``fingerprint`` is that of the reward model that last answered, None before. Every method raises ``ClientError``.
    """

    name: str
    transport: Transport
    ledger: Ledger
    fingerprint: str | None = None

    def hello(self) -> str:
        """The fingerprint of the client's reward model."""
        self.fingerprint = self._ask(m.HelloRequest(), m.HelloReply).fingerprint
        return self.fingerprint

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> list[float | None]:
        """One calibrated score or None a completion."""
        rows: dict[tuple[int, str, str], int] = {}
        places = [
            rows.setdefault((id(image), prompt, completion), len(rows))
            for prompt, image, completion in zip(prompts, images, completions, strict=True)
        ]
        pictures = {id(image): image for image in images}
        scores: list[float | None] = []
        for request, n in _score_requests(list(rows), pictures):
            reply = self._ask(request, m.ScoreReply)
            with self._checked():
                scores += reply.values(n)
            self.fingerprint = reply.fingerprint
        return [scores[place] for place in places]

    def compare(self, ids: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[bool | None]:
        """The annotator's "A or B?" on public prompts."""
        votes = self._ask(m.CompareRequest(list(ids), list(first), list(second)), m.CompareReply).votes
        if len(votes) != len(ids):
            raise ClientError(f"client {self.name}: CompareReply has {len(votes)} votes; expected {len(ids)}")
        return votes

    def means(self, mean: NDArray[np.float32], projection: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
        """The noised mean (C,) of the client's prompts' features in the basis ``mean`` (F,), ``projection`` (F, C), and how
        often its reward model ranks its pairs rightly."""
        components = projection.shape[1]
        request = m.MeansRequest(mean.astype("<f4").tobytes(), projection.astype("<f4").tobytes(), components)
        reply = self._ask(request, m.MeansReply)
        with self._checked():
            told = reply.values(components)
        if (length := float(np.linalg.norm(told))) > math.sqrt(components) * (1 + 1e-4):
            raise ClientError(f"client {self.name}: a mean of length {length:.3g}; expected at most sqrt({components})")
        return told, reply.accuracy

    def anchors(self, most: int) -> Anchors:
        """At most ``most`` of the pairs that the client lists as shared; maybe none."""
        reply = self._ask(m.AnchorRequest(most), m.AnchorReply)
        if len(reply.images) > most:
            raise ClientError(f"client {self.name}: AnchorReply has {len(reply.images)} pairs; expected at most {most}")
        with self._checked():
            return Anchors(reply.prompts, m.images_from_bytes(reply.images), reply.chosen, reply.rejected)

    def _ask(self, request: m.Request, kind: type[R]) -> R:
        """The client's reply, which is of that kind."""
        sent = m.encode(request)
        before = self._carried()
        received = b""
        try:
            received = self.transport(sent)
        finally:  # a call that fails has its price too
            up, down = (now - then for now, then in zip(self._carried(), before, strict=True))
            message = type(request).__name__.removesuffix("Request").lower()
            self.ledger.record(self.name, message, up=len(received), down=len(sent), socket_up=up, socket_down=down)
        with self._checked():
            reply = m.decode_reply(received)
        if isinstance(reply, m.Failure):
            if reply.code == "budget":
                raise BudgetSpentError(f"client {self.name}: its budget of {kind.__name__} for this run is spent")
            raise ClientError(f"client {self.name}: it reports a failure ({reply.code}); its own log says more")
        if not isinstance(reply, kind):
            raise ClientError(f"client {self.name}: expected {kind.__name__}, got {type(reply).__name__}")
        return reply

    @contextmanager
    def _checked(self) -> Iterator[None]:
        """What the contract does not let pass is a ``ClientError``."""
        try:
            yield
        except m.MessageError as error:
            raise ClientError(f"client {self.name}: {error}") from None

    def _carried(self) -> tuple[int, int]:
        """What the transport's socket has carried so far, up and down; nothing in-process."""
        counted: tuple[int, int] = getattr(self.transport, "socket_bytes", (0, 0))
        return counted


def _score_requests(
    rows: Sequence[tuple[int, str, str]], pictures: dict[int, Image.Image]
) -> Iterator[tuple[m.ScoreRequest, int]]:
    """Requests for distinct rows of image, prompt and completion, each within the contract's bounds, and their rows.

    Within a request no image and no prompt is sent twice.
    """

    def request() -> tuple[m.ScoreRequest, int]:
        asked = [(images[image], prompt) for image, prompt in prompts]
        return m.ScoreRequest([encoded[image] for image in images], asked, completions), len(completions)

    encoded: dict[int, bytes] = {}
    images: dict[int, int] = {}
    prompts: dict[tuple[int, str], int] = {}
    completions: list[tuple[int, str]] = []
    pixels = size = 0
    for image, prompt, completion in rows:
        if image not in encoded:
            encoded[image] = png_bytes(pictures[image])
        area = pictures[image].width * pictures[image].height
        text = len(prompt.encode()) + len(completion.encode()) + 32
        full = len(completions) == m.MOST_COMPLETIONS or size + text + len(encoded[image]) > m.MOST_BYTES
        if image not in images:
            full = full or len(images) == m.MOST_IMAGES or pixels + area > m.MOST_PIXELS_IN_ALL
        if full and completions:
            yield request()
            images, prompts, completions, pixels, size = {}, {}, [], 0, 0
        if image not in images:
            images[image] = len(images)
            pixels, size = pixels + area, size + len(encoded[image])
        number = prompts.setdefault((image, prompt), len(prompts))
        completions.append((number, completion))
        size += text
    yield request()
