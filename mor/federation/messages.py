"""The closed list of what may cross the boundary between the server and a client, as MessagePack.

======================  ==============================================  =======================================
from the server         to ask                                          from the client
======================  ==============================================  =======================================
``HelloRequest``        who judges there?                               ``HelloReply``: the reward model's name
``ScoreRequest``        how good are these completions?                 ``ScoreReply``
``CompareRequest``      A or B?                                         ``CompareReply``: preference bits
``MeansRequest``        where are your prompts, all in all?             ``MeansReply``: one noised mean
``AnchorRequest``       the pairs that you agreed to share              ``AnchorReply``: those that it lists itself
======================  ==============================================  =======================================

A client that does not answer sends ``Failure`` with a code from a closed list, and no text. Nothing else can be encoded, so
nothing else can leave a client: no raw data (but the pairs that it lists as shared), no weights, no gradients.

Whatever arrives is checked here, once: type, number, length, range, format and size. What passes is whole and bounded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from PIL import Image

from mor.config import LONGEST_TEXT, MOST_SIDE
from mor.data.pictures import check_scans

MOST_BYTES = 64 * 2**20  # of a request
MOST_REPLY_BYTES = 16 * 2**20
MOST_IMAGES = 1024  # in a message
MOST_PIXELS = MOST_SIDE**2  # of an image
MOST_PIXELS_IN_ALL = 2 * MOST_PIXELS  # of a message: a decoded pixel takes four bytes
MOST_COMPLETIONS = 4096  # in a message
MOST_CHARACTERS = 131_072  # of shared pairs, each padded to the longest
MOST_COMPONENTS = 256  # of the basis in which a client gives its mean
FORMATS = ("PNG", "JPEG")  # decoders of other formats start programs or read other files


class MessageError(ValueError):
    """Bytes that are no message of the contract."""


Text = Annotated[str, Meta(max_length=LONGEST_TEXT)]
Texts = Annotated[list[Text], Meta(max_length=MOST_COMPLETIONS)]
Images = Annotated[list[bytes], Meta(max_length=MOST_IMAGES)]
Index = Annotated[int, Meta(ge=0, lt=MOST_COMPLETIONS)]
Fingerprint = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16,64}\Z")]
FailureCode = Literal["malformed", "budget", "internal"]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages; a number tells the types apart, for a score is asked for in every step."""


class ScoreRequest(Message, frozen=True, tag=0):
    """``prompts`` are (image index, text), ``completions`` are (prompt index, text): nothing is sent twice, and a
    completion that was sampled more than once is scored once."""

    images: Images
    prompts: Annotated[list[tuple[Index, Text]], Meta(max_length=MOST_COMPLETIONS)]
    completions: Annotated[list[tuple[Index, Text]], Meta(max_length=MOST_COMPLETIONS)]


class ScoreReply(Message, frozen=True, tag=1):
    """``scores`` are little-endian float16 bytes, one a completion asked for, NaN where it is unscorable.

    Scores are calibrated, of the order of 1, and standardised again in every group: three digits are plenty.
    """

    scores: bytes
    fingerprint: Fingerprint

    @classmethod
    def of(cls, scores: Sequence[float | None], fingerprint: str) -> ScoreReply:
        numbers = np.array([np.nan if score is None else score for score in scores])
        limit = np.finfo(np.float16).max
        return cls(np.clip(numbers, -limit, limit).astype("<f2").tobytes(), fingerprint)

    def values(self, n: int) -> list[float | None]:
        """The scores, None where unscorable; raises ``MessageError`` unless they are ``n`` numbers, none of them infinite."""
        scores = _numbers(self.scores, "<f2", (n,), nan=True)
        return [None if math.isnan(score) else score for score in scores.tolist()]


class CompareRequest(Message, frozen=True, tag=2):
    """Two answers to each public prompt, named by its id."""

    ids: Texts
    first: Texts
    second: Texts


class CompareReply(Message, frozen=True, tag=3):
    """Preference bits: True for the first, False for the second, None for no opinion."""

    votes: Annotated[list[bool | None], Meta(max_length=MOST_COMPLETIONS)]


class AnchorRequest(Message, frozen=True, tag=4):
    """At most ``most`` of the pairs that the client lists as shared."""

    most: Annotated[int, Meta(ge=1, le=MOST_IMAGES)]


class AnchorReply(Message, frozen=True, tag=5):
    images: Images
    prompts: Texts
    chosen: Texts
    rejected: Texts


class MeansRequest(Message, frozen=True, tag=6):
    """A basis for prompt features x: z = (x - mean) projection, float32 bytes of ``mean`` (F,) and ``projection`` (F, C)."""

    mean: bytes
    projection: bytes
    components: Annotated[int, Meta(ge=1, le=MOST_COMPONENTS)]

    def basis(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``mean`` and ``projection``; raises ``MessageError`` unless their numbers are finite and their shapes fit."""
        features = len(self.mean) // 4
        return _numbers(self.mean, "<f4", (features,)), _numbers(self.projection, "<f4", (features, self.components))


class MeansReply(Message, frozen=True, tag=7):
    """``mean``: C float32 numbers; ``accuracy``: how often the reward model ranks its own pairs rightly. Both are noised."""

    mean: bytes
    accuracy: Annotated[float, Meta(ge=0.0, le=1.0)]

    def values(self, components: int) -> NDArray[np.float32]:
        """The mean, shape (components,); raises ``MessageError`` unless it is that many finite numbers."""
        return _numbers(self.mean, "<f4", (components,))


class Failure(Message, frozen=True, tag=8):
    """``malformed``: the request was no request of the contract. ``budget``: the client has answered what it will in a run.
    ``internal``: something went wrong there; the client's own log says what."""

    code: FailureCode


class HelloRequest(Message, frozen=True, tag=9):
    pass


class HelloReply(Message, frozen=True, tag=10):
    fingerprint: Fingerprint


M = TypeVar("M")
Request = ScoreRequest | CompareRequest | AnchorRequest | MeansRequest | HelloRequest
Reply = ScoreReply | CompareReply | AnchorReply | MeansReply | HelloReply | Failure
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """A message as MessagePack."""
    return _encoder.encode(message)


def decode_request(data: bytes) -> Request:
    """Raises ``MessageError`` for anything but a request of the contract."""
    request = _decode(_requests, data, MOST_BYTES, "request")
    match request:
        case ScoreRequest():
            _expect(all(i < len(request.images) for i, _ in request.prompts), "a prompt names an image that is not there")
            _expect(all(i < len(request.prompts) for i, _ in request.completions), "a completion names no prompt")
        case CompareRequest():
            _expect(len(request.ids) == len(request.first) == len(request.second), "ids and answers differ in number")
        case MeansRequest():
            request.basis()
    return request


def decode_reply(data: bytes) -> Reply:
    """Raises ``MessageError`` for anything but a reply of the contract."""
    reply = _decode(_replies, data, MOST_REPLY_BYTES, "reply")
    if isinstance(reply, AnchorReply):
        alike = len(reply.images) == len(reply.prompts) == len(reply.chosen) == len(reply.rejected)
        _expect(alike, "images, prompts and answers differ in number")
        characters = len(reply.prompts) * max(map(len, (*reply.prompts, *reply.chosen, *reply.rejected)), default=0)
        told = f"shared pairs of {characters} characters, padded; expected at most {MOST_CHARACTERS}"
        _expect(characters <= MOST_CHARACTERS, told)
    return reply


def _decode(decoder: msgspec.msgpack.Decoder[M], data: bytes, most: int, kind: str) -> M:
    _expect(len(data) <= most, f"a {kind} of {len(data)} bytes; expected at most {most}")
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError, MemoryError) as error:
        raise MessageError(f"not a {kind} of the contract: {type(error).__name__}") from None


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise MessageError(otherwise)


def _numbers(data: bytes, kind: str, shape: tuple[int, ...], *, nan: bool = False) -> NDArray[np.float32]:
    """Little-endian numbers of that shape, none infinite, and none NaN unless ``nan``."""
    size = math.prod(shape) * np.dtype(kind).itemsize
    _expect(len(data) == size, f"numbers of {len(data)} bytes; expected {size}, shape {shape}")
    numbers: NDArray[np.float32] = np.frombuffer(data, kind).reshape(shape).astype(np.float32)
    _expect(bool((np.isfinite(numbers) | (nan & np.isnan(numbers))).all()), "numbers that are not finite")
    return numbers


def image_from_bytes(data: bytes) -> Image.Image:
    """The RGB image of ``png_bytes``, or any PNG or JPEG of at most ``MOST_PIXELS``; raises ``MessageError`` otherwise."""
    return images_from_bytes([data])[0]


def images_from_bytes(images: Sequence[bytes]) -> list[Image.Image]:
    """RGB images, the sizes of all looked at before any is decoded; raises ``MessageError``."""
    sizes = [_size(data) for data in images]
    largest = max(sizes, default=0)
    _expect(largest <= MOST_PIXELS, f"an image of {largest} pixels; expected at most {MOST_PIXELS}")
    _expect(sum(sizes) <= MOST_PIXELS_IN_ALL, f"images of {sum(sizes)} pixels; expected at most {MOST_PIXELS_IN_ALL} in all")
    return [_decoded(data) for data in images]


def _size(data: bytes) -> int:
    """An image's pixels, by its header."""
    try:
        with io.BytesIO(data) as handle, Image.open(handle, formats=FORMATS) as image:
            if image.format == "JPEG":
                check_scans(handle)
            return image.width * image.height
    except Exception as error:  # decoders raise, or warn, whatever a broken file provokes
        raise MessageError(f"an image that is no {' or '.join(FORMATS)}: {type(error).__name__}") from None


def _decoded(data: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.convert("RGB")
    except Exception as error:
        raise MessageError(f"an image that cannot be decoded: {type(error).__name__}") from None
