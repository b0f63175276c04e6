"""Fitting the router asks clients, and no answer is no answer: who is away has no weight, and too few end the stage."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mor.config import RouterSettings
from mor.data.public import PublicPrompt
from mor.data.schema import Preference
from mor.errors import Unavailable, UserError
from mor.federation import messages as m
from mor.federation.ledger import Ledger
from mor.federation.quorum import QuorumError
from mor.federation.remote import RemoteClient
from mor.federation.server import Server, Settings
from mor.federation.service import ClientService
from mor.rewards.model import ranked_rightly
from mor.routing.fit import fit_and_control
from tests.mor.alignment.test_mixed_reward import BOUNDARY, TableReward

IMAGE = Image.new("RGB", (4, 4))
generator = torch.Generator().manual_seed(0)
CENTRES = 3 * torch.randn(3, 6, generator=generator)
PUBLIC = CENTRES.repeat_interleave(40, dim=0) + torch.randn(120, 6, generator=generator)
PAIRS = [Preference(id=f"p{i}", image="x.png", prompt=f"{i}?", chosen="good", rejected="bad") for i in range(40)]


class Base:
    """Reads a prompt by the number that it starts with."""

    def answer(self, prompts: list[str], images: list[Any], max_new_tokens: int) -> list[str]:
        return ["good" if int(prompt.split()[1][:-1]) % 2 else "bad" for prompt in prompts]

    def prompt_states(self, prompts: list[str], images: list[Any]) -> torch.Tensor:
        return torch.stack([CENTRES[int(prompt[0])] for prompt in prompts])


class FittingReward(TableReward):
    """Prefers the fitting answer to a control question, and the chosen one of a pair."""

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> list[float | None]:
        fitting = [Base().answer([prompt], [], 1)[0] if prompt.endswith("!") else "good" for prompt in prompts]
        return [float(said == fits) for said, fits in zip(completions, fitting, strict=True)]


def dead(name: str) -> RemoteClient:
    return RemoteClient(name, lambda data: m.encode(m.Failure("internal")), Ledger())


def client(name: str, k: int, *, good: float = 1.0, shares: int = 0, seen: list[m.Request] | None = None) -> RemoteClient:
    own = [pair.model_copy(update={"prompt": f"{k} {pair.prompt}"}) for pair in PAIRS]
    model = FittingReward({}) if good == 1.0 else TableReward({"good": good, "bad": 0.0})
    service = ClientService(
        model, BOUNDARY, lambda: CENTRES[k].repeat(40, 1), lambda: ranked_rightly(model, own, [IMAGE] * 40),
        anchors=[(pair, IMAGE) for pair in own[:shares]], noise=np.random.default_rng(k),
    )  # fmt: skip

    def transport(data: bytes) -> bytes:
        if seen is not None:
            seen.append(m.decode_request(data))
        return service.handle(data)

    return RemoteClient(name, transport, Ledger())


def fit(
    clients: list[RemoteClient], prompts: Sequence[PublicPrompt] = (), features: torch.Tensor = PUBLIC, **changes: Any
) -> Any:
    settings = Settings(router=RouterSettings(**{"control": 0, "components": 4} | changes))
    return fit_and_control(Server("base", clients, prompts, features, settings, Ledger()), Base())  # type: ignore[arg-type]


def fit_with_control(clients: list[RemoteClient]) -> Any:
    """A fit with eight control questions about 120 public prompts."""
    prompts = [PublicPrompt(f"q{i}", f"{i % 3} {i}!", IMAGE) for i in range(120)]
    return fit(clients, prompts, Base().prompt_states([prompt.text for prompt in prompts], []), control=8)


def without_scores(client: RemoteClient) -> RemoteClient:
    """The client, which tells its mean and answers no request for scores."""
    answer = client.transport

    def transport(data: bytes) -> bytes:
        request = m.decode_request(data)
        return m.encode(m.Failure("internal")) if isinstance(request, m.ScoreRequest) else answer(data)

    client.transport = transport
    return client


def test_the_router_finds_every_clients_prompts() -> None:
    router, said = fit([client("x", 0), client("y", 1), client("z", 2)])
    assert router.weights(CENTRES).argmax(1).tolist() == [0, 1, 2]
    assert said.metrics["router.answered.y"] == 1.0


def test_who_is_away_has_no_weight_and_is_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    router, said = fit([client("x", 0), dead("y"), client("z", 2)])
    assert router.absent == ["y"]
    assert router.weights(PUBLIC)[:, 1].max() == 0
    assert said.metrics["router.answered.y"] == 0.0
    assert "client y is left out" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["means", "preferences"])
def test_below_the_quorum_no_router_is_made(kind: str) -> None:
    with pytest.raises(QuorumError, match=r"1 of 3 clients answered, the quorum is 2; no answer from y, z"):
        fit([client("x", 0, shares=5), dead("y"), dead("z")], kind=kind)
    assert issubclass(QuorumError, Unavailable)


def test_a_client_that_ranks_its_own_pairs_by_chance_gets_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    router, _ = fit([client("x", 0), client("y", 1, good=-1.0), client("z", 2)])
    assert router.weights(PUBLIC)[:, 1].max() == 0
    assert "no better than chance" in capsys.readouterr().err


def test_where_nobody_is_better_than_chance_nobody_is_singled_out() -> None:
    router, _ = fit([client(name, k, good=-1.0) for k, name in enumerate("xyz")])
    assert router.excluded == []


def test_a_clients_anchors_reach_no_other_client() -> None:
    heard: dict[str, list[m.Request]] = {name: [] for name in "xyz"}
    router, _ = fit([client(n, k, shares=20, seen=heard[n]) for k, n in enumerate("xyz")], kind="preferences")
    for k, name in enumerate("xyz"):
        prompts = [text for request in heard[name] if isinstance(request, m.ScoreRequest) for _, text in request.prompts]
        assert prompts
        assert all(prompt.startswith(f"{k} ") for prompt in prompts)
    assert router.weights(CENTRES).argmax(1).tolist() == [0, 1, 2]


def test_where_nobody_shares_pairs_the_preferences_router_says_so() -> None:
    with pytest.raises(UserError, match=r"no client shares any: list their ids under clients.<name>.shared_anchors"):
        fit([client(name, k) for k, name in enumerate("xyz")], kind="preferences")


def test_who_does_not_answer_the_control_questions_is_not_trusted() -> None:
    router, said = fit_with_control([client("x", 0), without_scores(client("y", 1)), client("z", 2)])
    assert (router.excluded, router.absent) == (["y"], [])
    assert router.weights(CENTRES)[:, 1].max() == 0
    assert said.shares["x"].questions == 8


def test_who_fails_is_not_believed_because_the_one_that_would_pass_is_away() -> None:
    honest = without_scores(client("z", 2))
    liars = [client("x", 0, good=0.0), client("y", 1, good=0.0)]  # equal scores: no fitting answer is preferred
    for liar in liars:
        told = liar.transport
        liar.transport = lambda data, told=told: (  # type: ignore[misc]
            m.encode(m.MeansReply(m.decode_reply(told(data)).mean, 1.0))  # type: ignore[union-attr]
            if isinstance(m.decode_request(data), m.MeansRequest)
            else told(data)
        )
    with pytest.raises(QuorumError, match=r"nobody who answers the control questions passes them \(x, y\), and z"):
        fit_with_control([*liars, honest])


def test_one_client_cannot_bend_the_router_further_than_its_own_mean() -> None:
    def lying(data: bytes) -> bytes:
        return m.encode(m.MeansReply(np.full(4, 1e4, "<f4").tobytes(), 1.0))

    router, _ = fit([client("x", 0), RemoteClient("y", lying, Ledger()), client("z", 2)])
    assert router.absent == ["y"]  # refused, not averaged in
    assert router.weights(CENTRES)[[0, 2]].argmax(1).tolist() == [0, 2]
