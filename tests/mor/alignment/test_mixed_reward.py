"""The mixture: equivalences that hold by definition, and what happens when a client is silent."""

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from mor.alignment.mixed_reward import MixedReward
from mor.alignment.mixtures import weighted_mean
from mor.config import Boundary
from mor.data.public import PublicPrompt
from mor.federation import messages as m
from mor.federation.ledger import Ledger
from mor.federation.quorum import QuorumError
from mor.federation.remote import RemoteClient
from mor.federation.service import ClientService

IMAGE = Image.new("RGB", (4, 4))
BOUNDARY = Boundary(epsilon=8.0, delta=1e-5, prompts=300, means=1, scores=10**6, comparisons=10**4)
FINGERPRINT = "0123456789abcdef"


class TableReward:
    """A reward model that looks its scores up by completion."""

    fingerprint = FINGERPRINT

    def __init__(self, table: dict[str, float | None]) -> None:
        self.table = table

    def score(self, prompts: Sequence[str], images: Sequence[Image.Image], completions: Sequence[str]) -> list[float | None]:
        return [self.table[completion] for completion in completions]


def remote(name: str, table: dict[str, float | None]) -> RemoteClient:
    return RemoteClient(name, ClientService(TableReward(table), BOUNDARY).handle, Ledger())


def broken(name: str) -> RemoteClient:
    return RemoteClient(name, lambda data: m.encode(m.Failure("internal")), Ledger())


def reward(clients: list[RemoteClient], weights: list[float], **options: object) -> MixedReward:
    prompt = PublicPrompt("p", "What?", IMAGE, None, np.array(weights))
    return MixedReward(clients, {"p": prompt}, generations=2, calibration="reference", **options)  # type: ignore[arg-type]


ASKED = {"prompts": ["What?"] * 2, "completions": ["a", "b"], "id": ["p", "p"]}
FIRST, SECOND = {"a": 1.0, "b": 3.0}, {"a": 10.0, "b": -2.0}


def test_one_hot_router_returns_that_clients_reward() -> None:
    assert reward([remote("x", FIRST), remote("y", SECOND)], [0.0, 1.0])(**ASKED) == [10.0, -2.0]


def test_uniform_router_is_the_mean_reward() -> None:
    assert reward([remote("x", FIRST), remote("y", SECOND)], [0.5, 0.5])(**ASKED) == [5.5, 0.5]  # (1+10)/2, (3-2)/2


def test_one_client_is_its_own_reward_model() -> None:
    assert reward([remote("x", FIRST)], [1.0])(**ASKED) == [1.0, 3.0]


def test_reordering_clients_changes_nothing() -> None:
    forward = reward([remote("x", FIRST), remote("y", SECOND)], [0.25, 0.75])(**ASKED)
    assert forward == reward([remote("y", SECOND), remote("x", FIRST)], [0.75, 0.25])(**ASKED)


def test_an_unscorable_completion_is_none_and_never_zero() -> None:
    assert reward([remote("x", {"a": None, "b": 3.0})], [1.0])(**ASKED) == [None, 3.0]


def test_where_one_client_cannot_score_the_others_are_renormalised() -> None:
    scored = reward([remote("x", {"a": None, "b": 3.0}), remote("y", SECOND)], [0.5, 0.5])(**ASKED)
    assert scored == [10.0, 0.5]  # y alone; (3-2)/2


def test_an_absent_client_is_left_out_and_recorded() -> None:
    mixed = reward([remote("x", FIRST), broken("y")], [0.6, 0.4], quorum=1)
    assert mixed(**ASKED) == [1.0, 3.0]
    assert mixed.absent == {"y": 1}


@pytest.mark.parametrize(("coverage", "judged"), [(0.5, False), (0.25, True), (0.0, True)])
def test_where_an_expert_is_absent_nobody_judges_in_its_place(coverage: float, judged: bool) -> None:
    mixed = reward([remote("x", FIRST), broken("y")], [0.25, 0.75], quorum=1, coverage=coverage)
    assert mixed(**ASKED) == ([1.0, 3.0] if judged else [None, None])


def test_who_was_not_asked_has_not_answered() -> None:
    with pytest.raises(QuorumError, match="0 of 3 clients answered, the quorum is 2; no answer from z, x, y"):
        reward([broken("x"), broken("y"), broken("z")], [0.1, 0.1, 0.8], quorum=2, top_k=1)(**ASKED)


def test_unasked_clients_that_greet_make_the_quorum() -> None:
    clients = [remote("x", FIRST), remote("y", SECOND), broken("z")]
    assert reward(clients, [0.9, 0.06, 0.04], quorum=2, top_k=1)(**ASKED) == [1.0, 3.0]
    assert clients[1].ledger.bytes["y", "hello", "up"] > 0


def test_below_the_quorum_the_round_pauses_and_names_who_is_missing() -> None:
    with pytest.raises(QuorumError, match="1 of 2 clients answered, the quorum is 2; no answer from y"):
        reward([remote("x", FIRST), broken("y")], [0.5, 0.5], quorum=2)(**ASKED)


def test_top_one_asks_only_the_first_choice() -> None:
    clients = [remote("x", FIRST), remote("y", SECOND)]
    assert reward(clients, [0.6, 0.4], top_k=1)(**ASKED) == [1.0, 3.0]
    assert clients[1].ledger.total("y", "down") == 0


def test_top_one_asks_nobody_else_where_the_first_choice_is_absent() -> None:
    clients = [remote("x", FIRST), broken("y")]
    assert reward(clients, [0.4, 0.6], top_k=1)(**ASKED) == [None, None]
    assert clients[0].ledger.bytes["x", "score", "down"] == 0


def test_group_calibration_ignores_a_clients_scale_and_shift() -> None:
    def scored(table: dict[str, float | None]) -> list[float | None]:
        mixed = reward([remote("x", table)], [1.0])
        mixed.calibration = "group"
        return mixed(**ASKED)

    assert scored(FIRST) == pytest.approx([-1.0, 1.0])  # (1 - 2) / 1, (3 - 2) / 1
    assert scored({"a": 1000.0 * 1.0 + 7, "b": 1000.0 * 3.0 + 7}) == pytest.approx([-1.0, 1.0])


def test_the_mixture_of_nothing_is_nan() -> None:
    assert np.isnan(weighted_mean(np.array([[np.nan, 2.0]]), np.array([[1.0, 0.0]]))).all()


def test_the_callable_can_be_pickled_without_its_clients() -> None:
    copy = pickle.loads(pickle.dumps(reward([], [1.0])))
    assert copy.__name__ == "mixed_reward"
    assert copy.prompts["p"].text == "What?"


def test_another_mixture_takes_the_place_of_the_weighted_mean() -> None:
    from mor.alignment.mixtures import minimum

    clients = [remote("x", FIRST), remote("y", SECOND)]
    assert reward(clients, [0.5, 0.5], mixture=minimum)(**ASKED) == [1.0, -2.0]


def test_who_has_no_weight_anywhere_does_not_make_the_quorum() -> None:
    clients = [remote("x", FIRST), broken("y"), remote("excluded", SECOND)]
    with pytest.raises(QuorumError, match=r"1 of 2 clients answered, the quorum is 2; no answer from y"):
        reward(clients, [0.6, 0.4, 0.0], quorum=2)(**ASKED)


def test_a_client_that_scores_nothing_has_not_answered() -> None:
    silent = remote("y", {"a": None, "b": None})
    with pytest.raises(QuorumError, match=r"y: it could score none of 2 completions"):
        reward([remote("x", FIRST), silent], [0.5, 0.5], quorum=2)(**ASKED)


def test_one_clients_huge_scores_do_not_decide_on_the_clients_own_scales() -> None:
    clients = [remote("x", FIRST), remote("y", {"a": 65504.0, "b": -65504.0})]
    assert reward(clients, [0.75, 0.25])(**ASKED) == [3.25, -0.25]  # 0.75 x 1 + 0.25 x 10, 0.75 x 3 - 0.25 x 10
