"""Routers: weights sum to one, masks renormalise, and each fit finds the client that is right."""

from pathlib import Path

import pytest
import torch

from mor.routing.bradley_terry import fit_bradley_terry, new_network
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


def test_an_excluded_client_has_no_weight_and_comes_back_from_disk_without(tmp_path: Path) -> None:
    for excluded, absent in ((["x"], []), ([], ["x"])):
        router = fresh("preferences")
        router.excluded, router.absent = excluded, absent
        router.save(tmp_path)
        for same in (router, Router.load(tmp_path)):
            assert same.weights(FEATURES).tolist() == [[0.0, 1.0]] * 80


def test_a_random_router_of_another_seed_picks_others_and_keeps_its_seed_on_disk(tmp_path: Path) -> None:
    first, second = (select(Router("random", NAMES, seed=seed).weights(FEATURES), top_k=1) for seed in (1, 2))
    assert not torch.equal(first, second)
    Router("random", NAMES, seed=2).save(tmp_path)
    assert torch.equal(select(Router.load(tmp_path).weights(FEATURES), top_k=1), second)


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
    "router", [fresh("preferences"), Router("static", NAMES, StaticNetwork(2)), Router("oracle", NAMES, owners={"a": ["x"]})]
)
def test_a_saved_router_weighs_as_before(router: Router, tmp_path: Path) -> None:
    router.save(tmp_path)
    categories = ["a"] * 80
    assert torch.equal(Router.load(tmp_path).weights(FEATURES, categories), router.weights(FEATURES, categories))
