"""Routers: weights sum to one, masks renormalise, and each fit finds the client that is right."""

import copy
from pathlib import Path

import pytest
import torch

from mor.routing.fit import apply_updates, fit_bradley_terry, flat, local_update, new_network, server_optimiser
from mor.routing.router import Router, StaticNetwork, select

NAMES = ["x", "y"]
generator = torch.Generator().manual_seed(0)
# two clusters of prompts: client 0 owns the first, client 1 the second
FEATURES = torch.cat([torch.randn(40, 8, generator=generator) + 2, torch.randn(40, 8, generator=generator) - 2])


def fresh(kind: str = "online") -> Router:
    network = new_network(FEATURES, 4, 2, torch.Generator().manual_seed(1))
    return Router(kind, NAMES, network)


def accuracy(router: Router) -> float:
    owner = torch.tensor([0] * 40 + [1] * 40)
    return float((router.weights(FEATURES).argmax(1) == owner).float().mean())


def test_a_new_router_is_uniform() -> None:
    assert torch.equal(fresh().weights(FEATURES), torch.full((80, 2), 0.5))


def test_select_renormalises_the_kept_weights() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.2]])
    assert torch.allclose(select(weights, top_k=2), torch.tensor([[0.625, 0.375, 0.0]]))  # 0.5 / 0.8, 0.3 / 0.8
    present = torch.tensor([False, True, True])
    assert torch.allclose(select(weights, present=present), torch.tensor([[0.0, 0.6, 0.4]]))  # 0.3 / 0.5, 0.2 / 0.5
    assert torch.equal(select(weights, top_k=1, present=present), torch.tensor([[0.0, 1.0, 0.0]]))
    assert torch.allclose(select(weights, least=0.5), torch.tensor([[0.625, 0.375, 0.0]]))  # 0.2 < 0.5 x 0.5


def test_select_refuses_a_mixture_of_nobody() -> None:
    with pytest.raises(ValueError, match="at least one"):
        select(torch.tensor([[1.0]]), present=torch.tensor([False]))


def test_a_client_alone_counts_however_small_its_weight_was() -> None:
    assert torch.equal(select(torch.tensor([[1.0, 0.0]]), present=torch.tensor([False, True])), torch.tensor([[0.0, 1.0]]))


def test_a_random_router_counts_all_the_same_until_top_k_picks_one_of_them_at_random() -> None:
    weights = Router("random", NAMES).weights(FEATURES)
    assert torch.allclose(weights, torch.full((80, 2), 0.5), atol=1e-5)
    picked = select(weights, top_k=1)
    assert set(picked.flatten().tolist()) == {0.0, 1.0}
    assert 20 < picked[:, 0].sum() < 60  # 40 expected of 80
    assert torch.equal(picked, select(Router("random", NAMES).weights(FEATURES), top_k=1))


def test_the_oracle_follows_owners_and_shares_what_nobody_owns() -> None:
    oracle = Router("oracle", NAMES, owners={"count": ["y"]})
    assert oracle.weights(FEATURES[:2], ["count", "other"]).tolist() == [[0.0, 1.0], [0.5, 0.5]]


def test_federated_updates_learn_who_owns_which_prompts() -> None:
    router = fresh("federated")
    assert router.network is not None
    optimiser = server_optimiser(router.network, 0.1)
    for _ in range(10):
        state = router.network.state_dict()
        right = torch.ones(40)
        updates = [
            (local_update(state, FEATURES[:40], right, 0, steps=4, learning_rate=0.05), 40),
            (local_update(state, FEATURES[40:], right, 1, steps=4, learning_rate=0.05), 40),
        ]
        apply_updates(router.network, updates, optimiser)
    assert accuracy(router) == 1.0


def test_a_client_that_is_wrong_pushes_prompts_away_and_one_that_guesses_leaves_them() -> None:
    network = fresh("federated").network
    assert network is not None

    def moved(right: torch.Tensor) -> torch.Tensor:
        delta = local_update(network.state_dict(), FEATURES[:40], right, 0, steps=1, learning_rate=0.5)
        after = copy.deepcopy(network)
        torch.nn.utils.vector_to_parameters(flat(after) + delta, after.parameters())
        return after(FEATURES[:40]).softmax(1)[:, 0].mean() - 0.5

    assert moved(torch.ones(40)) > 0.05 > -0.05 > moved(torch.zeros(40))
    assert abs(moved(torch.arange(40) % 2)) < 0.02


def test_an_excluded_client_has_no_weight_and_comes_back_from_disk_without(tmp_path: Path) -> None:
    router = fresh("federated")
    router.excluded = ["x"]
    router.save(tmp_path)
    for same in (router, Router.load(tmp_path)):
        assert same.weights(FEATURES).tolist() == [[0.0, 1.0]] * 80


def test_one_client_alone_updates_as_training_in_one_place_would() -> None:
    network = fresh().network
    assert network is not None
    before = flat(network)
    delta = local_update(network.state_dict(), FEATURES, torch.ones(80), 0, steps=1, learning_rate=0.1)
    loss = -network(FEATURES).log_softmax(1)[:, 0].mean()
    loss.backward()
    gradient = torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()])  # type: ignore[union-attr]
    assert torch.allclose(before + delta, before - 0.1 * gradient, atol=1e-6)


def margins() -> torch.Tensor:
    """Client 0 is right by 2 on the first cluster and wrong by 2 on the second; client 1 the other way round."""
    return torch.cat([torch.tensor([[2.0, -2.0]]).expand(40, 2), torch.tensor([[-2.0, 2.0]]).expand(40, 2)])


def test_choices_teach_the_router_whom_to_ask() -> None:
    fitted, loss = fit_bradley_terry(fresh(), FEATURES, margins(), public=FEATURES, trust=0.0)
    assert accuracy(fitted) == 1.0
    assert loss < 0.2  # log(1 + exp(-2)) = 0.127 at best


def test_the_trust_region_holds_the_last_router() -> None:
    fitted, _ = fit_bradley_terry(fresh(), FEATURES, margins(), public=FEATURES, trust=1000.0)
    assert torch.allclose(fitted.weights(FEATURES), torch.full((80, 2), 0.5), atol=0.05)


def test_an_unscorable_client_gets_no_say_in_the_fit() -> None:
    unknown = margins()
    unknown[:, 1] = float("nan")
    fitted, _ = fit_bradley_terry(fresh(), FEATURES, unknown, public=FEATURES, trust=0.0)
    assert torch.isfinite(fitted.weights(FEATURES)).all()


@pytest.mark.parametrize(
    "router", [fresh("federated"), Router("static", NAMES, StaticNetwork(2)), Router("oracle", NAMES, owners={"a": ["x"]})]
)
def test_a_saved_router_weighs_as_before(router: Router, tmp_path: Path) -> None:
    router.save(tmp_path)
    categories = ["a"] * 80
    assert torch.equal(Router.load(tmp_path).weights(FEATURES, categories), router.weights(FEATURES, categories))
