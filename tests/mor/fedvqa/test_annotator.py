"""The annotator follows its documented rule, and errs at the set rate."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from mor.config import Style, load_params
from mor.fedvqa.annotator import KINDS, STYLES, err, in_style, make_pair
from mor.fedvqa.render import DOMAINS, digit_pool, draw_question

HOUSE_STYLE = load_params(Path("params.yaml")).fedvqa.styles


def worth_of(text: str, value: str, values: tuple[str, ...], house: str) -> int:
    """The annotator's points for ``text``; ``values`` are all values that could be an answer to the question."""
    for style in STYLES:
        for candidate in values:
            if text == in_style(candidate, style):
                return 1 + 2 * (candidate == value) + (style == house)
    return 0


@pytest.mark.parametrize("domain", ["documents", "medical", "scenes"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_chosen_answer_always_has_more_points(domain: str, kind: str) -> None:
    rng, house = np.random.default_rng(0), HOUSE_STYLE[domain]
    for _ in range(200):
        question = draw_question(domain, rng, "clients")
        pair = make_pair(question, house, kind, rng)
        values = (question.value, *question.wrong)
        assert worth_of(pair.chosen, question.value, values, house) > worth_of(pair.rejected, question.value, values, house)


def test_points_weigh_right_above_house_style() -> None:
    values = ("47", "41")
    assert worth_of("47", "47", values, "terse") == 4  # 1 + 2 (right) + 1 (house)
    assert worth_of("answer: 47", "47", values, "terse") == 3  # 1 + 2
    assert worth_of("41", "47", values, "terse") == 2  # 1 + 1
    assert worth_of("answer: 41", "47", values, "terse") == 1
    assert worth_of("The answer is", "47", values, "terse") == 0


def test_the_shipped_house_styles_conflict_and_every_style_can_be_set() -> None:
    assert len(set(HOUSE_STYLE.values())) == len(HOUSE_STYLE) == 3
    assert set(get_args(Style)) == set(STYLES)


def test_the_error_rate_is_the_set_one() -> None:
    rng = np.random.default_rng(0)
    pair = make_pair(draw_question("documents", rng, "clients"), "terse", "correctness", rng)
    swapped = sum(err(pair, 0.05, rng).chosen == pair.rejected for _ in range(4000))
    assert 150 < swapped < 250  # 4000 * 0.05 = 200, standard deviation 13.8


def test_source_digits_of_the_pools_are_disjoint() -> None:
    pools = [{image.tobytes() for image in digit_pool(name).images} for name in ("pretrain", "clients", "public", "test")]
    for i, pool in enumerate(pools):
        assert all(pool.isdisjoint(other) for other in pools[i + 1 :])
    assert sum(map(len, pools)) == 1797  # all of them, none twice


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_the_right_value_is_never_listed_as_wrong(domain: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        question = draw_question(domain, rng, "test")
        assert question.wrong
        assert question.value not in question.wrong
        assert question.image.shape == (32, 32, 3)
