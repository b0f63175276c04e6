"""The closed list of what may cross the boundary between the server and a client, as MessagePack.

======================  =======================================  =====================================
from the server         to ask                                   from the client
======================  =======================================  =====================================
``ScoreRequest``        how good are these completions?          ``ScoreReply``
``CompareRequest``      A or B?                                  ``CompareReply``
``AnchorRequest``       pairs that the client agreed to share    ``AnchorReply``
``RouterRequest``       an update of the tiny router             ``RouterReply``
======================  =======================================  =====================================

A client that cannot answer sends ``Failure``. Nothing else can be encoded, so nothing else can leave a client:
no raw data (but the anchors it chose to share), no weights, no gradients of its model.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import msgspec
import numpy as np
from PIL import Image


class MessageError(ValueError):
    """Bytes that are no message of the contract."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """Base of all messages; a number tells the types apart, for a score is asked for in every step."""


class ScoreRequest(Message, frozen=True, tag=0):
    """``prompts`` are (image index, text), ``completions`` are (prompt index, text): nothing is sent twice, and a
    completion that was sampled more than once is scored once."""

    images: list[bytes]
    prompts: list[tuple[int, str]]
    completions: list[tuple[int, str]]


class ScoreReply(Message, frozen=True, tag=1):
    """``scores`` are little-endian float16 bytes, one a completion asked for, NaN where it is unscorable.

    Scores are calibrated, of the order of 1, and standardised again in every group: three digits are plenty.
    """

    scores: bytes
    fingerprint: str

    @classmethod
    def of(cls, scores: Sequence[float | None], fingerprint: str) -> ScoreReply:
        numbers = np.array([np.nan if score is None else score for score in scores])
        limit = np.finfo(np.float16).max
        return cls(np.clip(numbers, -limit, limit).astype("<f2").tobytes(), fingerprint)

    def values(self) -> list[float | None]:
        """The scores, None where unscorable; raises ``ValueError`` for bytes that are no float16."""
        return [score if math.isfinite(score) else None for score in np.frombuffer(self.scores, dtype="<f2").tolist()]


class CompareRequest(Message, frozen=True, tag=2):
    """Two answers to each public prompt, named by its id."""

    ids: list[str]
    first: list[str]
    second: list[str]


class CompareReply(Message, frozen=True, tag=3):
    """Preference bits: True for the first, False for the second, None for no opinion."""

    votes: list[bool | None]


class AnchorRequest(Message, frozen=True, tag=4):
    count: int


class AnchorReply(Message, frozen=True, tag=5):
    images: list[bytes]
    prompts: list[str]
    chosen: list[str]
    rejected: list[str]


class RouterRequest(Message, frozen=True, tag=6):
    """The router's weights (safetensors bytes) and how to improve them locally."""

    router: bytes
    local_steps: int
    learning_rate: float


class RouterReply(Message, frozen=True, tag=7):
    """The change of the router's weights, flattened float16 bytes, and the number of prompts behind it."""

    delta: bytes
    examples: int


class Failure(Message, frozen=True, tag=8):
    reason: str


Request = ScoreRequest | CompareRequest | AnchorRequest | RouterRequest
Reply = ScoreReply | CompareReply | AnchorReply | RouterReply | Failure
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """A message as MessagePack."""
    return _encoder.encode(message)


def decode_request(data: bytes) -> Request:
    """Raises ``MessageError`` for anything but a request of the contract."""
    try:
        return _requests.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(f"not a request of the contract: {error}") from None


def decode_reply(data: bytes) -> Reply:
    """Raises ``MessageError`` for anything but a reply of the contract."""
    try:
        return _replies.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(f"not a reply of the contract: {error}") from None


def image_bytes(image: Image.Image) -> bytes:
    """The image as PNG, lossless, so that every client judges the same pixels."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def image_from_bytes(data: bytes) -> Image.Image:
    """The RGB image of ``image_bytes``."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")
