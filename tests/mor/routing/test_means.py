"""The router from one mean a client: it finds the owner, noised or not, and nobody can bend it far."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mor.federation.private_mean import clipped, noise_multiplier, released
from mor.routing.means import basis, nearest_mean
from mor.routing.router import Router

generator = torch.Generator().manual_seed(0)
CENTRES = 2.5 * torch.randn(3, 16, generator=generator)
OWNER = torch.arange(3).repeat_interleave(300)
PUBLIC = CENTRES[OWNER] + torch.randn(900, 16, generator=generator)
PRIVATE = [centre + torch.randn(300, 16, generator=generator) for centre in CENTRES]
NAMES = ["x", "y", "z"]


def told(n: int = 300, epsilon: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The clients' means (3, C) and the basis."""
    mean, projection = basis(PUBLIC, 8)
    rng = np.random.default_rng(0)
    means = [
        released(clipped(own[:n], mean, projection), torch.ones(n), epsilon=epsilon, delta=1e-5, rng=rng)[0] for own in PRIVATE
    ]
    return torch.stack(means), mean, projection


def router(means: torch.Tensor, mean: torch.Tensor, projection: torch.Tensor, present: list[bool] | None = None) -> Router:
    here = torch.tensor(present or [True] * 3)
    absent = [name for name, there in zip(NAMES, here.tolist(), strict=True) if not there]
    return Router("means", NAMES, nearest_mean(means, here, mean, projection, PUBLIC), absent=absent)


def accuracy(fitted: Router) -> float:
    return float((fitted.weights(PUBLIC).argmax(1) == OWNER).float().mean())


def test_public_features_are_white_in_the_basis() -> None:
    mean, projection = basis(PUBLIC, 8)
    z = (PUBLIC - mean) @ projection
    assert torch.allclose(z.T @ z / len(z), torch.eye(8), atol=1e-3)


def test_no_example_is_longer_than_the_ball() -> None:
    mean, projection = basis(PUBLIC, 8)
    assert clipped(PUBLIC * 1e6, mean, projection).norm(dim=1).max() <= 8**0.5 * (1 + 1e-5)


def test_a_basis_of_few_public_prompts_has_fewer_components() -> None:
    assert basis(PUBLIC[:5], 8)[1].shape == (16, 4)


@pytest.mark.parametrize("epsilon", [0.0, 8.0, 2.0])
def test_the_owner_of_a_prompt_has_the_largest_weight(epsilon: float) -> None:
    assert accuracy(router(*told(epsilon=epsilon))) > 0.97


def test_how_many_prompts_a_client_has_does_not_count() -> None:
    means, mean, projection = told()
    few = means.clone()
    few[0] = clipped(PRIVATE[0][:30], mean, projection).mean(0)
    weights = [router(m, mean, projection).weights(PUBLIC).mean(0) for m in (means, few)]
    assert torch.allclose(weights[0], weights[1], atol=0.03)


def test_who_is_absent_has_no_weight() -> None:
    weights = router(*told(), present=[True, False, True]).weights(PUBLIC)
    assert weights[:, 1].max() == 0
    assert torch.allclose(weights.sum(1), torch.ones(900))


def test_a_client_that_copies_anothers_mean_gets_half_of_its_weight_and_no_more() -> None:
    means, mean, projection = told()
    means[1] = means[0]
    weights = router(means, mean, projection).weights(PUBLIC)
    assert weights[OWNER == 0][:, 1].mean() == pytest.approx(0.5, abs=0.03)
    assert weights[OWNER == 2][:, 2].mean() > 0.95


def test_a_client_alone_has_all_the_weight(tmp_path: Path) -> None:
    mean, projection = basis(PUBLIC, 8)
    alone = Router("means", ["x"], nearest_mean(torch.zeros(1, 8), torch.tensor([True]), mean, projection, PUBLIC))
    alone.save(tmp_path)
    assert Router.load(tmp_path).weights(PUBLIC[:2]).tolist() == [[1.0], [1.0]]


def test_a_router_comes_back_from_disk_the_same(tmp_path: Path) -> None:
    fitted = router(*told())
    fitted.save(tmp_path)
    assert torch.equal(Router.load(tmp_path).weights(PUBLIC), fitted.weights(PUBLIC))


def test_noise_is_at_least_what_the_exact_gaussian_mechanism_needs_and_hardly_more() -> None:
    # Balle and Wang 2018, theorem 8, solved for delta = 1e-5: 0.600 at epsilon 8, 1.994 at 2
    assert 0.600 < noise_multiplier(8.0, 1e-5) < 0.66
    assert 1.994 < noise_multiplier(2.0, 1e-5) < 2.2
    assert noise_multiplier(0.0, 1e-5) == 0.0


def test_a_client_without_prompts_has_nothing_to_tell() -> None:
    with pytest.raises(ValueError, match="without prompts"):
        released(torch.zeros(0, 8), torch.zeros(0), epsilon=8.0, delta=1e-5, rng=np.random.default_rng(0))
