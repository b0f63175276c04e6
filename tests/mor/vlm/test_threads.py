"""Any number of threads may ask one model at once; each gets the numbers that it would get alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from mor.fedvqa.architectures import ARCHITECTURES, Size
from mor.fedvqa.render import draw_question
from mor.rewards.model import HeadReward, ImplicitReward, ScalarHead
from mor.vlm.load import Vlm

CALLERS, SCORES, BATCH = 8, 2000, 16
SMALL = Size(hidden=16, layers=1, vision_hidden=16, vision_layers=1, heads=2)


@pytest.fixture(scope="module")
def rows() -> tuple[list[str], list[Image.Image], list[str]]:
    rng = np.random.default_rng(0)
    questions = [draw_question("scenes", rng, "test") for _ in range(SCORES)]
    answers = ["no " * int(n) + "red" for n in rng.integers(0, 8, SCORES)]
    return [q.prompt for q in questions], [Image.fromarray(q.image) for q in questions], answers


@pytest.fixture(scope="module")
def models(rows: tuple[list[str], list[Image.Image], list[str]]) -> tuple[Vlm, Vlm]:
    """Two models, small and random, that share a processor as a tuned model and its reference may."""
    torch.manual_seed(0)
    model, processor = ARCHITECTURES["llava"](rows[0], SMALL)
    other = type(model)(model.config)
    return Vlm(model.eval(), processor, BATCH), Vlm(other.eval(), processor, BATCH)


def in_all_threads(score: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
    with ThreadPoolExecutor(CALLERS) as pool:
        return [call.result() for call in [pool.submit(score) for _ in range(CALLERS)]]


def test_eight_threads_get_the_same_bits_as_one(
    rows: tuple[list[str], list[Image.Image], list[str]], models: tuple[Vlm, Vlm]
) -> None:
    alone = models[0].answer_log_probs(*rows)
    assert sum(int((got != alone).sum()) for got in in_all_threads(lambda: models[0].answer_log_probs(*rows))) == 0


def test_both_kinds_of_reward_and_prompt_states_are_the_same_bits_in_eight_threads(
    rows: tuple[list[str], list[Image.Image], list[str]], models: tuple[Vlm, Vlm]
) -> None:
    prompts, images, answers = (part[: SCORES // 20] for part in rows)
    implicit, head = ImplicitReward(*models), HeadReward(models[0], ScalarHead(SMALL.hidden))

    def all_three() -> torch.Tensor:
        scores = torch.stack([reward(prompts, images, answers) for reward in (implicit, head)], dim=1)
        return torch.cat([models[1].prompt_states(prompts, images), scores], dim=1)

    alone = all_three()
    assert sum(int((got != alone).sum()) for got in in_all_threads(all_three)) == 0
