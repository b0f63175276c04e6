"""A client's side of the boundary: it holds the private data, the reward model and the answer key, and turns a request's bytes
into a reply's bytes.

Whoever asks, no more leaves than ``mor.config.Boundary`` says: how many answers in a run (from the start of the service to its
end), and how private the one mean of prompt features is. A request that asks for more gets ``Failure("budget")``, one that is
not of the contract ``Failure("malformed")``; texts of errors stay in the client's own log.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from PIL import Image

from mor.config import Boundary
from mor.data.pictures import png_bytes
from mor.data.schema import Answer, Preference
from mor.federation import messages as m
from mor.federation.private_mean import clipped, released
from mor.rewards.model import RewardModel

logger = logging.getLogger(__name__)
BATCH = 128  # completions between two looks at whether the caller is still there
BATCH_CHARACTERS = 65_536  # of prompts and completions in a batch, padded to the longest


class BudgetSpent(Exception):
    """The client has answered as much as it will in a run."""


class CallerGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class ClientService:
    """A client's side.

    ``features`` gives the router features, shape (N, F), of the private prompts that the mean is taken over, computed with the
    public base model; ``ranked_rightly`` says of pairs of its own whether the reward model ranks them as its annotator does.
    ``anchors`` are the pairs that the client lists as shared, with their images; ``noise`` blurs the mean: nobody else
    may know its state.
    """

    reward_model: RewardModel
    boundary: Boundary
    features: Callable[[], torch.Tensor] = field(default=lambda: torch.zeros(0, 0))
    ranked_rightly: Callable[[], Sequence[bool]] = list
    answers: dict[str, Answer] = field(default_factory=dict)
    anchors: Sequence[tuple[Preference, Image.Image]] = ()
    noise: np.random.Generator = field(default_factory=np.random.default_rng)
    _spent: Counter[str] = field(init=False, default_factory=Counter)
    _released: dict[m.MeansRequest, m.MeansReply] = field(init=False, default_factory=dict)
    _lock: Lock = field(init=False, default_factory=Lock)

    def handle(self, data: bytes, gone: Callable[[], bool] = lambda: False) -> bytes:
        """One request's bytes to one reply's bytes; problems become ``Failure``, never a half answer.

        ``gone`` says whether the caller has left; then the work ends early.
        """
        try:
            return m.encode(self._answer(m.decode_request(data), gone))
        except m.MessageError:
            return m.encode(m.Failure("malformed"))
        except BudgetSpent:
            return m.encode(m.Failure("budget"))
        except CallerGone:
            return m.encode(m.Failure("internal"))
        except Exception:  # the boundary: whatever goes wrong here is told here, and the server records an absence
            logger.exception("a request could not be answered")
            return m.encode(m.Failure("internal"))

    def _answer(self, request: m.Request, gone: Callable[[], bool]) -> m.Reply:
        match request:
            case m.HelloRequest():
                return m.HelloReply(self.reward_model.fingerprint)
            case m.ScoreRequest():
                self._spend("scores", len(request.completions))
                return self._score(request, gone)
            case m.CompareRequest():
                self._spend("comparisons", len(request.ids))
                return m.CompareReply(list(map(self._vote, request.ids, request.first, request.second)))
            case m.AnchorRequest():
                shared = self.anchors[: request.most]
                texts = ([getattr(pair, text) for pair, _ in shared] for text in ("prompt", "chosen", "rejected"))
                return m.AnchorReply([png_bytes(image) for _, image in shared], *texts)
            case m.MeansRequest():
                return self._means(request)

    def _spend(self, what: str, n: int) -> None:
        """Count ``n`` answers; raises ``BudgetSpent`` and counts nothing where that would be too many."""
        with self._lock:
            if self._spent[what] + n > getattr(self.boundary, what):
                raise BudgetSpent
            self._spent[what] += n

    def _score(self, request: m.ScoreRequest, gone: Callable[[], bool]) -> m.ScoreReply:
        images = m.images_from_bytes(request.images)
        scores: list[float | None] = []
        for batch in _batches([(*request.prompts[prompt], text) for prompt, text in request.completions]):
            if gone():
                raise CallerGone
            numbers, prompts, completions = map(list, zip(*batch, strict=True))
            scores += self.reward_model.score(prompts, [images[number] for number in numbers], completions)
        return m.ScoreReply.of(scores, self.reward_model.fingerprint)

    def _vote(self, prompt_id: str, first: str, second: str) -> bool | None:
        """The annotator's choice: the preferred answer over one that is merely right, and that over the rest."""
        key = self.answers.get(prompt_id)
        if key is None:
            return None
        worth = [2 * (text.strip() == key.answer) + (text.strip() in {key.answer, *key.accepted}) for text in (first, second)]
        return None if worth[0] == worth[1] else worth[0] > worth[1]

    def _means(self, request: m.MeansRequest) -> m.MeansReply:
        """The release for this basis: made once, and repeated whenever it is asked for again.

        Another basis would be another look at the same prompts: it costs a further one of ``boundary.means``.
        """
        with self._lock:
            if request not in self._released:
                if len(self._released) >= self.boundary.means:
                    raise BudgetSpent
                mean, projection = (torch.from_numpy(part) for part in request.basis())
                features = self.features()
                if features.shape[1] != len(mean):
                    raise m.MessageError(f"a basis for {len(mean)} features; the base model has {features.shape[1]}")
                noised, accuracy = released(
                    clipped(features, mean, projection),
                    torch.tensor(self.ranked_rightly(), dtype=torch.float32),
                    epsilon=self.boundary.epsilon, delta=self.boundary.delta, rng=self.noise,
                )  # fmt: skip
                self._released[request] = m.MeansReply(noised.numpy().astype("<f4").tobytes(), accuracy)
            return self._released[request]


def _batches(rows: Sequence[tuple[int, str, str]]) -> Iterator[list[tuple[int, str, str]]]:
    """Rows of image, prompt and completion in order, in batches that bound a model's memory."""
    batch: list[tuple[int, str, str]] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row[1]) + len(row[2]))
        if batch and (len(batch) == BATCH or longest * (len(batch) + 1) > BATCH_CHARACTERS):
            yield batch
            batch, longest = [], len(row[1]) + len(row[2])
        batch.append(row)
    if batch:
        yield batch
