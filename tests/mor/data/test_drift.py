"""What counts as drift, on samples whose distances are known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mor.config import Drift
from mor.data.drift import agreement, categories, decide, differences, image_statistics, shape
from mor.data.schema import Preference

LIMITS = Drift(
    least_rows=20, significance=0.01, shape_warn=0.15, shape_stop=0.6, categories_warn=0.2, categories_stop=0.8,
    agreement_warn=0.1, agreement_stop=0.3,
)  # fmt: skip


def test_the_distance_of_a_shape_is_the_largest_gap_between_the_cumulative_shares() -> None:
    old, new = [0.0] * 50 + [1.0] * 50, [0.0] * 20 + [1.0] * 80  # at 0: 50 % against 20 %
    found = shape("brightness", old, new, LIMITS)
    assert found.statistic == pytest.approx(0.3)
    assert found.p_value < 0.01
    assert (found.decision, found.before, found.after) == ("warn", 0.5, 1.0)
    assert shape("brightness", [0.0] * 50, [1.0] * 50, LIMITS).decision == "stop"


def test_a_large_distance_that_chance_may_have_made_is_no_drift() -> None:
    found = shape("brightness", [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0], LIMITS)  # 75 % against 25 %: 0.5, of 4 and 4
    assert found.statistic == pytest.approx(0.5)
    assert found.decision == "continue"


def test_a_small_distance_is_no_drift_however_sure_it_is() -> None:
    found = shape("brightness", [0.0] * 5000 + [1.0] * 5000, [0.0] * 4500 + [1.0] * 5500, LIMITS)
    assert found.p_value < 1e-6
    assert (found.statistic, found.decision) == (pytest.approx(0.05), "continue")


def test_the_distance_of_categories_is_that_of_their_shares() -> None:
    found = categories(["a"] * 50 + ["b"] * 50, ["a"] * 50, LIMITS)
    # shares (1/2, 1/2) and (1, 0), middle (3/4, 1/4): KL .5 log2(2/3) + .5 log2 2 = .2075 and log2(4/3) = .4150; root of mean
    assert found.statistic == pytest.approx(0.5579, abs=1e-4)
    assert (found.decision, found.before, found.after) == ("warn", 0.5, 1.0)
    assert categories(["a"] * 50, ["c"] * 50, LIMITS).statistic == pytest.approx(1.0)
    assert categories(["a"] * 50, ["c"] * 50, LIMITS).decision == "stop"


def test_rows_without_a_category_are_alike() -> None:
    found = categories([None] * 50, [None] * 50, LIMITS)
    assert (found.statistic, found.p_value, found.decision) == (0.0, 1.0, "continue")


def test_swapped_preferences_stop_a_delivery_and_better_ones_do_not() -> None:
    old = [True] * 95 + [False] * 5
    found = agreement(old, [True] * 6 + [False] * 54, LIMITS)  # 0.95 - 0.10
    assert found.statistic == pytest.approx(0.85)
    assert found.decision == "stop"
    assert agreement(old, [True] * 45 + [False] * 15, LIMITS).decision == "warn"  # 0.95 - 0.75
    risen = agreement([True] * 5 + [False] * 95, [True] * 60, LIMITS)
    assert (risen.statistic, risen.decision) == (pytest.approx(-0.95), "continue")


def test_the_gravest_finding_decides() -> None:
    fine, bad = agreement([True] * 50, [True] * 50, LIMITS), agreement([True] * 50, [False] * 50, LIMITS)
    fair = categories(["a"] * 50 + ["b"] * 50, ["a"] * 50, LIMITS)
    assert [decide(found) for found in ([], [fine], [fine, fair], [bad, fair])] == ["continue", "continue", "warn", "stop"]


def test_image_statistics_of_a_half_red_half_black_picture() -> None:
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, :2, 0] = 255  # grey 1/3 on one half, 0 on the other: mean 1/6, deviation 1/6; saturation 1 and 0
    found = image_statistics(Image.fromarray(pixels))
    wanted = {"brightness": 1 / 6, "contrast": 1 / 6, "saturation": 0.5, "width": 4, "height": 2}
    assert found == pytest.approx(wanted)


def test_rows_are_compared_by_pictures_lengths_and_categories() -> None:
    def rows(prompt: str, category: str) -> list[Preference]:
        row = Preference(id="x", image="x.png", prompt=prompt, chosen="2", rejected="3", category=category)
        return [row] * 40

    pictures = ({"brightness": [0.2] * 40}, {"brightness": [0.9] * 40})
    found = {f.name: f for f in differences(rows("What?", "a"), rows("What is it?", "a"), pictures, LIMITS)}
    stopped = {name for name, finding in found.items() if finding.decision == "stop"}
    assert stopped == {"brightness", "prompt_length"}
    assert found.keys() == {"brightness", "prompt_length", "chosen_length", "rejected_length", "categories"}
    assert (found["prompt_length"].before, found["prompt_length"].after) == (5.0, 11.0)
