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

import msgspec
from PIL import Image


class MessageError(ValueError):
    """Bytes that are no message of the contract."""


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all messages."""


class ScoreRequest(Message, frozen=True):
    """``prompts`` are (image index, text), ``completions`` are (prompt index, text): nothing is sent twice."""

    images: list[bytes]
    prompts: list[tuple[int, str]]
    completions: list[tuple[int, str]]


class ScoreReply(Message, frozen=True):
    scores: list[float | None]
    fingerprint: str


class CompareRequest(Message, frozen=True):
    """Two answers to each public prompt, named by its id."""

    ids: list[str]
    first: list[str]
    second: list[str]


class CompareReply(Message, frozen=True):
    """Preference bits: True for the first, False for the second, None for no opinion."""

    votes: list[bool | None]


class AnchorRequest(Message, frozen=True):
    count: int


class AnchorReply(Message, frozen=True):
    images: list[bytes]
    prompts: list[str]
    chosen: list[str]
    rejected: list[str]


class RouterRequest(Message, frozen=True):
    """The router's weights (safetensors bytes) and how to improve them locally."""

    router: bytes
    local_steps: int
    learning_rate: float


class RouterReply(Message, frozen=True):
    """The change of the router's weights, flattened float16 bytes, and the number of prompts behind it."""

    delta: bytes
    examples: int


class Failure(Message, frozen=True):
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
