"""The boundary: only messages of the contract cross it, and every byte is counted."""

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from mor.data.schema import Answer
from mor.federation import messages as m
from mor.federation.client import ClientError, ClientService, RemoteClient
from mor.federation.ledger import Ledger
from tests.alignment.test_mixed_reward import TableReward

IMAGE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def test_every_message_survives_the_wire() -> None:
    sent = m.ScoreRequest([m.image_bytes(IMAGE)], [(0, "What?")], [(0, "a"), (0, "b")])
    assert m.decode_request(m.encode(sent)) == sent
    reply = m.ScoreReply.of([0.1, None], "f")
    assert m.decode_reply(m.encode(reply)) == reply
    assert reply.values() == [pytest.approx(0.1, abs=1e-3), None]


@pytest.mark.parametrize("data", [b"", b"junk", msgspec.msgpack.encode(["Weights", b"x"]), m.encode(m.ScoreReply.of([], "f"))])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(m.MessageError, match="not a request of the contract"):
        m.decode_request(data)


def test_images_arrive_pixel_by_pixel() -> None:
    assert m.image_from_bytes(m.image_bytes(IMAGE)).tobytes() == IMAGE.tobytes()


def test_an_image_is_sent_once_however_many_completions_it_has() -> None:
    ledger = Ledger()
    client = RemoteClient("x", ClientService(TableReward({"a": 1.0, "b": 2.0}), 0).handle, ledger)
    assert client.score(["What?"] * 4, [IMAGE] * 4, ["a", "b", "a", "b"]) == [1.0, 2.0, 1.0, 2.0]
    assert ledger.total("x", "down") < 2 * len(m.image_bytes(IMAGE))


def test_scores_name_the_reward_model_that_gave_them() -> None:
    client = RemoteClient("x", ClientService(TableReward({"a": 1.0}), 0).handle, Ledger())
    assert client.fingerprint is None
    client.score(["What?"], [IMAGE], ["a"])
    assert client.fingerprint == "table"


def test_a_completion_that_was_sampled_often_is_asked_for_once() -> None:
    ledger = Ledger()
    client = RemoteClient("x", ClientService(TableReward({"a": 1.0, "b": None}), 0).handle, ledger)
    assert client.score(["What?"] * 5, [IMAGE] * 5, ["b", "a", "b", "a", "a"]) == [None, 1.0, None, 1.0, 1.0]
    assert ledger.total("x", "up") == len(m.encode(m.ScoreReply.of([None, 1.0], "table")))


def test_scores_that_are_no_numbers_are_refused() -> None:
    client = RemoteClient("x", lambda data: m.encode(m.ScoreReply(b"12345", "f")), Ledger())
    with pytest.raises(ClientError, match="client x: ScoreReply holds no float16"):
        client.score(["What?"], [IMAGE], ["a"])


def test_the_ledger_counts_both_directions_to_the_byte() -> None:
    service, ledger = ClientService(TableReward({"a": 1.0}), 0), Ledger()
    RemoteClient("x", service.handle, ledger).score(["What?"], [IMAGE], ["a"])
    request = m.encode(m.ScoreRequest([m.image_bytes(IMAGE)], [(0, "What?")], [(0, "a")]))
    assert ledger.bytes["x", "score", "down"] == len(request)
    assert ledger.bytes["x", "score", "up"] == len(service.handle(request))


def test_a_failure_at_the_client_is_an_error_that_names_it() -> None:
    client = RemoteClient("x", ClientService(TableReward({}), 0).handle, Ledger())
    with pytest.raises(ClientError, match="client x: KeyError"):
        client.score(["What?"], [IMAGE], ["a"])


def test_a_reply_of_the_wrong_length_is_refused() -> None:
    client = RemoteClient("x", lambda data: m.encode(m.ScoreReply.of([1.0, 2.0], "f")), Ledger())
    with pytest.raises(ClientError, match="has 2 values; expected 1"):
        client.score(["What?"], [IMAGE], ["a"])


def test_the_annotator_prefers_its_answer_then_what_is_right_and_abstains_on_the_rest() -> None:
    answers = {"p": Answer(id="p", answer="47", accepted=["47", "answer: 47"])}
    client = RemoteClient("x", ClientService(TableReward({}), 0, answers=answers).handle, Ledger())
    first, second = ["47", "41", "41", "47"], ["answer: 47", "answer: 47", "42", "41"]
    assert client.compare(["p", "p", "p", "q"], first, second) == [True, False, None, None]


def test_a_router_update_is_a_few_kilobytes() -> None:
    from mor.routing.fit import new_network
    from mor.routing.router import Router

    states = torch.randn(10, 128, generator=torch.Generator().manual_seed(0))
    router = Router("federated", ["x", "y", "z"], new_network(states, 16, 3, torch.Generator().manual_seed(0)))
    service, ledger = ClientService(TableReward({}), 1, states=lambda: states), Ledger()
    service._ranked_rightly = torch.ones(10)
    delta, examples = RemoteClient("x", service.handle, ledger).router_update(router.state_bytes(), 2, 0.05)
    assert examples == 10
    assert len(delta) == 128 * 16 + 16 + 16 * 3 + 3
    assert ledger.total("x", "up") < 5000
