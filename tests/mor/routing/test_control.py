"""Control questions tell a client that prefers fitting answers from one that prefers others, by what each claims."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mor.federation import messages as m
from mor.federation.ledger import Ledger
from mor.federation.remote import RemoteClient
from mor.routing.control import Share, control_shares

PROMPTS = ["What colour?", "How many?"] * 20
IMAGES = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(40)]
ANSWERS = [f"red {i}" if i % 2 == 0 else f"{i}" for i in range(40)]
ASKED: dict[str, list[tuple[int, str, str]]] = {}


def client(name: str, sign: float) -> RemoteClient:
    """Likes the fitting answer by ``sign``; remembers what it was asked: image number, prompt, answer."""

    def answer(data: bytes) -> bytes:
        request = m.decode_request(data)
        assert isinstance(request, m.ScoreRequest)
        rows = [(m.image_from_bytes(request.images[i]).getpixel((0, 0))[0], text) for i, text in request.prompts]  # type: ignore[index]
        asked = [(*rows[prompt], completion) for prompt, completion in request.completions]
        ASKED[name] = asked  # type: ignore[assignment]
        return m.encode(m.ScoreReply.of([sign * (ANSWERS[i] == said) for i, _, said in asked], "0" * 16))  # type: ignore[call-overload]

    return RemoteClient(name, answer, Ledger())


def shares(weights: np.ndarray, clients: list[RemoteClient]) -> dict[str, Share]:
    return control_shares(clients, weights, PROMPTS, IMAGES, ANSWERS, 16, np.random.default_rng(0))[0]


def test_a_client_that_prefers_other_answers_fails() -> None:
    found = shares(np.full((40, 2), 0.5), [client("honest", 1.0), client("hostile", -1.0)])
    assert found == {"honest": Share(1.0, 16), "hostile": Share(0.0, 16)}
    assert not found["honest"].not_above_chance
    assert found["hostile"].not_above_chance


def test_a_client_is_asked_what_it_claims_with_another_answer_to_the_same_question() -> None:
    weights = np.zeros((40, 1))
    weights[::2] = 1.0  # the questions of colour
    shares(weights, [client("painter", 1.0)])
    assert all(prompt == "What colour?" and said.startswith("red") for _, prompt, said in ASKED["painter"])
    assert len({number for number, _, _ in ASKED["painter"]}) == 16


def test_a_client_that_claims_nothing_or_fails_to_answer_is_not_judged() -> None:
    def broken(_: bytes) -> bytes:
        return m.encode(m.Failure("internal"))

    found = shares(np.array([[0.0, 1.0]] * 40), [client("idle", 1.0), RemoteClient("down", broken, Ledger())])
    assert np.isnan([share.value for share in found.values()]).all()
    assert not any(share.not_above_chance for share in found.values())


@pytest.mark.parametrize(("share", "fails"), [(0.62, True), (0.63, False)])
def test_chance_ends_where_64_coins_seldom_get(share: float, fails: bool) -> None:
    assert Share(share, 64).not_above_chance == fails


def test_chance_is_judged_by_the_questions_that_were_asked() -> None:
    weights = np.zeros((40, 1))
    weights[:4] = 1.0  # it claims four prompts: three of four is no proof, though three quarters of 64 were
    found = shares(weights, [client("lucky", 1.0)])["lucky"]
    assert found.questions == 4
    assert Share(0.75, 4).not_above_chance
    assert not Share(0.75, 64).not_above_chance
