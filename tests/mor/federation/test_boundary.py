"""The boundary: only messages of the contract cross it, no more than a client allows, and every byte is counted."""

import io
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mor.config import Boundary
from mor.data.pictures import png_bytes
from mor.data.schema import Answer, Preference
from mor.errors import TRY_AGAIN, Unavailable
from mor.federation import messages as m
from mor.federation.ledger import Ledger
from mor.federation.private_mean import clipped
from mor.federation.remote import BudgetSpentError, ClientError, RemoteClient
from mor.federation.service import ClientService
from mor.rewards.model import ranked_rightly
from mor.routing.means import basis
from tests.mor.alignment.test_mixed_reward import BOUNDARY, FINGERPRINT, TableReward

IMAGE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
FEATURES = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) + 1.0
PAIRS = [Preference(id=f"p{i}", image="x.png", prompt=f"What {i}?", chosen="a", rejected="b") for i in range(50)]


class Counting(TableReward):
    """Remembers how many completions it was asked to score at a time."""

    def __init__(self, table: dict[str, float | None]) -> None:
        super().__init__(table)
        self.sizes: list[int] = []

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> list[float | None]:
        self.sizes.append(len(completions))
        return [0.0] * len(completions)


def service(table: dict[str, float | None] | None = None, **options: object) -> ClientService:
    boundary = Boundary.model_validate(BOUNDARY.model_dump() | options.pop("boundary", {}))  # type: ignore[call-overload]
    return ClientService(TableReward({"a": 1.0, "b": 0.0} if table is None else table), boundary, **options)  # type: ignore[arg-type]


def remote(transport: Callable[[bytes], bytes]) -> RemoteClient:
    return RemoteClient("x", transport, Ledger())


def saying(reply: m.Message) -> RemoteClient:
    return remote(lambda data: m.encode(reply))


def ranks_rightly() -> list[bool]:
    return ranked_rightly(TableReward({"a": 1.0, "b": 0.0}), PAIRS, [IMAGE] * 50)


def with_means(**options: object) -> ClientService:
    return service(features=lambda: FEATURES, ranked_rightly=ranks_rightly, **options)


# --- what is a message ----------------------------------------------------------------------------------------------------


def test_every_message_survives_the_wire() -> None:
    sent = m.ScoreRequest([png_bytes(IMAGE)], [(0, "What?")], [(0, "a"), (0, "b")])
    assert m.decode_request(m.encode(sent)) == sent
    reply = m.ScoreReply.of([0.1, None], FINGERPRINT)
    assert m.decode_reply(m.encode(reply)) == reply
    assert reply.values(2) == [pytest.approx(0.1, abs=1e-3), None]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"junk",
        b"\xdd\xff\xff\xff\xff",  # a list of four thousand million
        b"\x91" * 100_000,  # lists in lists
        msgspec.msgpack.encode(["Weights", b"x"]),
        m.encode(m.ScoreReply.of([], FINGERPRINT)),
        m.encode(m.ScoreRequest([], [(0, "an image that is not there")], [])),
        m.encode(m.ScoreRequest([], [], [(7, "a prompt that is not there")])),
        m.encode(m.ScoreRequest([], [], [(-1, "the last one")])),
        m.encode(m.ScoreRequest([b""], [(0, "x" * (m.LONGEST_TEXT + 1))], [])),
        m.encode(m.ScoreRequest([b""], [(0, "x")], [(0, "a")] * (m.MOST_COMPLETIONS + 1))),
        m.encode(m.CompareRequest(["p"], ["a"], [])),
        m.encode(m.MeansRequest(b"\0" * 32, b"\0" * 31, 1)),
        m.encode(m.MeansRequest(np.full(8, np.nan, "<f4").tobytes(), b"\0" * 32, 1)),
        m.encode(m.AnchorRequest(10**9)),
    ],
)
def test_anything_else_is_refused_without_a_text(data: bytes) -> None:
    with pytest.raises(m.MessageError):
        m.decode_request(data)
    assert service().handle(data) == m.encode(m.Failure("malformed"))


def test_images_arrive_pixel_by_pixel_and_without_what_else_their_file_held() -> None:
    told, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    told.add_text("Comment", "patient 4711")
    IMAGE.save(buffer, format="PNG", pnginfo=told, dpi=(72, 72), icc_profile=b"patient 4711")
    with Image.open(buffer) as image:
        sent = png_bytes(image)
    assert m.image_from_bytes(sent).tobytes() == IMAGE.tobytes()
    assert b"patient" not in sent


def picture(form: str, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["EPS", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_only_png_and_jpeg_are_decoded(form: str) -> None:
    with pytest.raises(m.MessageError, match="no PNG or JPEG"):
        m.image_from_bytes(picture(form))


def test_a_bomb_of_pixels_is_refused_by_its_header() -> None:
    with pytest.raises(m.MessageError, match="25000000 pixels"):
        m.image_from_bytes(picture("PNG", 5000))
    with pytest.raises(m.MessageError, match="in all"):
        m.images_from_bytes([picture("PNG", 3500)] * 3)  # 12 million each


# --- what leaves a client ---------------------------------------------------------------------------------------------------


def test_a_client_shares_only_the_pairs_that_it_lists() -> None:
    asked = remote(with_means().handle).anchors(60)
    assert (asked.prompts, asked.images, asked.chosen, asked.rejected) == ([], [], [], [])
    listed = remote(with_means(anchors=[(PAIRS[3], IMAGE), (PAIRS[7], IMAGE)]).handle)
    assert listed.anchors(60).prompts == ["What 3?", "What 7?"]
    assert listed.anchors(1).prompts == ["What 3?"]


def test_the_text_of_an_error_stays_at_the_client(caplog: pytest.LogCaptureFixture) -> None:
    private = service({})  # TableReward raises KeyError("patient 4711")
    request = m.encode(m.ScoreRequest([png_bytes(IMAGE)], [(0, "?")], [(0, "patient 4711")]))
    assert private.handle(request) == m.encode(m.Failure("internal"))
    assert "patient 4711" in caplog.text
    with pytest.raises(ClientError, match=r"client x: it reports a failure \(internal\)"):
        remote(private.handle).score(["?"], [IMAGE], ["patient 4711"])


@pytest.mark.parametrize(("what", "limit"), [("scores", 5), ("comparisons", 4)])
def test_a_spent_budget_is_a_typed_refusal_and_nothing_is_answered_by_halves(what: str, limit: int) -> None:
    client = remote(service(boundary={what: limit}).handle)

    def ask(n: int) -> object:
        texts = ["a", "b", "a "][:n] if what == "scores" else ["a"] * n
        if what == "scores":
            return client.score(["?"] * n, [IMAGE] * n, texts)
        return client.compare(["p"] * n, texts, texts)

    if what == "scores":
        with pytest.raises(ClientError):
            ask(3)  # "a " is in no table: an internal failure, which is paid for too
        assert ask(2) == [1.0, 0.0]
    else:
        assert ask(3) == [None] * 3
    with pytest.raises(BudgetSpentError, match=r"budget of .*Reply for this run is spent"):
        ask(2)
    assert issubclass(BudgetSpentError, ClientError)


def test_the_mean_is_told_once_in_one_basis_and_then_repeated() -> None:
    private = with_means()
    client = remote(private.handle)
    mean, projection = (part.numpy() for part in basis(FEATURES, 4))
    first = client.means(mean, projection)
    assert np.array_equal(client.means(mean, projection)[0], first[0])
    with pytest.raises(BudgetSpentError):
        client.means(mean, -projection)


def test_crafted_bases_give_no_feature_vector_away() -> None:
    """The attack on gradients: ask for one direction after another and solve for the rows."""
    private = with_means()
    client, told = remote(private.handle), []
    for column in torch.eye(8).split(1, dim=1):
        with suppress(BudgetSpentError):
            told.append(client.means(np.zeros(8, np.float32), (1e6 * column).numpy())[0])
    assert len(told) == 1  # one number about fifty prompts


def test_the_mean_is_as_noisy_as_it_claims() -> None:
    mean, projection = basis(FEATURES, 4)
    exact = clipped(FEATURES, mean, projection).mean(0).numpy()
    told = [
        remote(with_means(noise=np.random.default_rng(seed)).handle).means(mean.numpy(), projection.numpy())[0] - exact
        for seed in range(200)
    ]
    # opacus: 0.638 sensitivities for (8, 1e-5); sqrt(1 + 0.5^2) for the accuracy beside it; sensitivity 2 sqrt(4) / 50
    expected = 0.638 * math.sqrt(1.25) * 2 * math.sqrt(4) / 50
    assert np.std(told) == pytest.approx(expected, rel=0.1)


def test_without_noise_the_mean_is_exact_and_the_accuracy_that_of_the_reward_model() -> None:
    mean, projection = basis(FEATURES, 4)
    told, accuracy = remote(with_means(boundary={"epsilon": 0.0}).handle).means(mean.numpy(), projection.numpy())
    assert np.allclose(told, clipped(FEATURES, mean, projection).mean(0).numpy(), atol=1e-5)
    assert accuracy == 1.0  # "a" over "b" in every pair


# --- what the server believes -----------------------------------------------------------------------------------------------


def ask_for_means(client: RemoteClient) -> object:
    return client.means(np.zeros(8, np.float32), np.eye(8, dtype=np.float32))


def ask_for_scores(client: RemoteClient) -> object:
    return client.score(["What?"], [IMAGE], ["a"])


@pytest.mark.parametrize(
    ("ask", "reply"),
    [
        (ask_for_means, m.MeansReply(np.full(8, np.nan, "<f4").tobytes(), 1.0)),
        (ask_for_means, m.MeansReply(np.full(8, np.inf, "<f4").tobytes(), 1.0)),
        (ask_for_means, m.MeansReply(np.zeros(7, "<f4").tobytes(), 1.0)),
        (ask_for_means, m.MeansReply(np.full(8, 1e9, "<f4").tobytes(), 1.0)),  # outside the ball
        (ask_for_means, m.MeansReply(np.zeros(8, "<f4").tobytes(), 1e9)),
        (ask_for_means, m.MeansReply(np.zeros(8, "<f4").tobytes(), float("nan"))),
        (ask_for_means, m.HelloReply(FINGERPRINT)),
        (ask_for_scores, m.ScoreReply(b"12345", FINGERPRINT)),
        (ask_for_scores, m.ScoreReply.of([1.0, 2.0], FINGERPRINT)),
        (ask_for_scores, m.ScoreReply(np.array([np.inf], "<f2").tobytes(), FINGERPRINT)),
        (ask_for_scores, m.ScoreReply.of([1.0], "short")),
        (ask_for_scores, m.ScoreReply.of([1.0], "\x1b[2J" + "0" * 16)),
        (ask_for_scores, m.CompareReply([True])),
        (lambda client: client.compare(["p"], ["a"], ["b"]), m.CompareReply([])),
        (lambda client: client.compare(["p"], ["a"], ["b"]), m.CompareReply([True] * 5)),
        (lambda client: client.anchors(5), m.AnchorReply([b"no image"], ["?"], ["a"], ["b"])),
        (lambda client: client.anchors(5), m.AnchorReply([picture("PNG", 5000)], ["?"], ["a"], ["b"])),
        (lambda client: client.anchors(5), m.AnchorReply([], ["?"], ["a"], ["b"])),
        (lambda client: client.anchors(1), m.AnchorReply([png_bytes(IMAGE)] * 2, ["?"] * 2, ["a"] * 2, ["b"] * 2)),
        (lambda client: client.hello(), m.HelloReply("")),
    ],
)
def test_a_reply_that_is_none_is_a_client_error(ask: Callable[[RemoteClient], object], reply: m.Message) -> None:
    with pytest.raises(ClientError, match="client x: "):
        ask(saying(reply))


@pytest.mark.parametrize("data", [b"", b"junk", b"\xdd\xff\xff\xff\xff", b"\x91" * 100_000, b"\0" * (m.MOST_REPLY_BYTES + 1)])
def test_bytes_that_are_no_reply_are_a_client_error(data: bytes) -> None:
    with pytest.raises(ClientError, match="client x: "):
        ask_for_scores(remote(lambda _: data))


def test_a_client_error_is_worth_trying_again() -> None:
    assert issubclass(ClientError, Unavailable)  # which the stages' main ends with
    assert TRY_AGAIN == 75


# --- what it costs ------------------------------------------------------------------------------------------------------------


def test_an_image_is_sent_once_however_many_completions_it_has() -> None:
    client = remote(service({"a": 1.0, "b": 2.0}).handle)
    assert client.score(["What?"] * 4, [IMAGE] * 4, ["a", "b", "a", "b"]) == [1.0, 2.0, 1.0, 2.0]
    assert client.ledger.total("x", "down") < 2 * len(png_bytes(IMAGE))


def test_more_than_a_message_holds_is_asked_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MOST_PIXELS_IN_ALL", 32)  # two images of 16 pixels
    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(5)]
    calls: list[m.ScoreRequest] = []
    private = service({str(i): float(i) for i in range(10)})

    def transport(data: bytes) -> bytes:
        calls.append(m.decode_request(data))  # type: ignore[arg-type]
        return private.handle(data)

    numbers = [str(i) for i in range(10)]
    assert remote(transport).score(["?"] * 10, [images[i // 2] for i in range(10)], numbers) == [float(i) for i in range(10)]
    assert [len(call.images) for call in calls] == [2, 2, 1]


def test_scores_name_the_reward_model_that_gave_them() -> None:
    client = remote(service().handle)
    assert client.fingerprint is None
    client.score(["What?"], [IMAGE], ["a"])
    assert client.fingerprint == FINGERPRINT == remote(service().handle).hello()


def test_a_completion_that_was_sampled_often_is_asked_for_once() -> None:
    client = remote(service({"a": 1.0, "b": None}).handle)
    assert client.score(["What?"] * 5, [IMAGE] * 5, ["b", "a", "b", "a", "a"]) == [None, 1.0, None, 1.0, 1.0]
    assert client.ledger.total("x", "up") == len(m.encode(m.ScoreReply.of([None, 1.0], FINGERPRINT)))


def test_the_ledger_counts_both_directions_to_the_byte() -> None:
    private, ledger = service(), Ledger()
    RemoteClient("x", private.handle, ledger).score(["What?"], [IMAGE], ["a"])
    request = m.encode(m.ScoreRequest([png_bytes(IMAGE)], [(0, "What?")], [(0, "a")]))
    assert ledger.bytes["x", "score", "down"] == len(request)
    assert ledger.bytes["x", "score", "up"] == len(private.handle(request))
    assert ledger.total("x", "up", "socket") == 0


def test_what_the_socket_carried_has_a_column_of_its_own(tmp_path: Path) -> None:
    class Socket:
        socket_bytes = (0, 0)

        def __call__(self, data: bytes) -> bytes:
            self.socket_bytes = (self.socket_bytes[0] + 1000, self.socket_bytes[1] + 2000)
            return service().handle(data)

    client = remote(Socket())
    for _ in range(3):
        client.hello()
    client.ledger.save(tmp_path / "ledger.json")
    assert [Ledger.load(tmp_path / "ledger.json").total("x", way, "socket") for way in ("up", "down")] == [3000, 6000]


def test_what_the_router_needs_of_a_client_is_below_a_kilobyte() -> None:
    mean, projection = (part.numpy() for part in basis(torch.randn(200, 128, generator=torch.Generator().manual_seed(0)), 32))
    states = torch.randn(50, 128, generator=torch.Generator().manual_seed(1))
    client = remote(service(features=lambda: states, ranked_rightly=ranks_rightly).handle)
    client.means(mean, projection)
    assert client.ledger.total("x", "up") < 200


def test_the_annotator_prefers_its_answer_then_what_is_right_and_abstains_on_the_rest() -> None:
    answers = {"p": Answer(id="p", answer="47", accepted=["47", "answer: 47"])}
    client = remote(service(answers=answers).handle)
    first, second = ["47", "41", "41", "47"], ["answer: 47", "answer: 47", "42", "41"]
    assert client.compare(["p", "p", "p", "q"], first, second) == [True, False, None, None]


def test_work_ends_when_the_caller_is_gone() -> None:
    counting = Counting({})
    rows = [(0, str(i)) for i in range(1000)]
    request = m.encode(m.ScoreRequest([png_bytes(IMAGE)], [(0, "?")], rows))
    ClientService(counting, BOUNDARY).handle(request, lambda: len(counting.sizes) == 2)
    assert sum(counting.sizes) == 256


def test_no_basis_makes_a_mean_that_is_not_a_number() -> None:
    """Overflow would tell, through all noise, whether a row lies beyond a threshold."""
    direction = torch.zeros(8)
    direction[0] = 1.0
    for threshold in (-5.0, 0.0, 3.0):
        client = remote(with_means().handle)
        mean, projection = direction * threshold, (direction * 3.4028e38 / 5)[:, None]
        assert np.isfinite(client.means(mean.numpy(), projection.numpy())[0]).all()


def test_long_texts_are_scored_in_small_batches() -> None:
    counting = Counting({})
    rows = [(0, str(i).ljust(8000)) for i in range(20)]
    ClientService(counting, BOUNDARY).handle(m.encode(m.ScoreRequest([png_bytes(IMAGE)], [(0, "?")], rows)))
    assert counting.sizes == [8, 8, 4]  # 8 x 8001 characters are below 65,536


def test_a_jpeg_of_a_thousand_scans_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, format="JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    assert m.image_from_bytes(data).size == (64, 64)
    with pytest.raises(m.MessageError):
        m.image_from_bytes(data[:-2] + data[last:-2] * 1000 + data[-2:])
