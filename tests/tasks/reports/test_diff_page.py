from __future__ import annotations

import pytest

from tasks.reports.diff_page import forest_plot, render_diff
from tasks.reports.difference import ComparedRun
from tests.tasks.reports.pages import Page
from tests.tasks.reports.test_difference import difference, evaluation, score_differences

HOSTILE = "<script>alert('x')</script>"


def page(a: ComparedRun, b: ComparedRun, images: dict[str, bytes]) -> Page:
    found = difference(a, b)
    picture = b"png" if found.scores else None
    return Page(render_diff(found, picture, images, samples=2, confidence=0.95, links={"both": "http://127.0.0.1:5000"}))


def test_page_shows_changes_scores_and_answers_and_runs_nothing() -> None:
    a, b = evaluation({"digits": [True] * 4}), evaluation({"digits": [False] * 4})
    b.answers["aligned"]["digits"][0] = b.answers["aligned"]["digits"][0].model_copy(update={"text": HOSTILE})
    shown = page(
        ComparedRun("night 1", params={"seed": "0"}, versions={"digits": "aaaa"}, evaluation=a),
        ComparedRun("night 2", params={"seed": HOSTILE}, versions={"digits": "bbbb"}, evaluation=b),
        {"0.png": b"png"},
    )
    assert "script" not in shown.tags
    assert shown.text.count(HOSTILE) == 2  # the setting and the answer, as text
    assert "falls" in shown.text
    assert "aaaabbbb" in shown.text
    assert len(shown.loads) == 2  # the figure and one question's image; the other has none here
    assert all(source.startswith("data:image/png;base64,") for source in shown.loads)


def test_page_says_which_run_has_kept_no_answers() -> None:
    shown = page(ComparedRun("night 1"), ComparedRun("night 2", evaluation=evaluation({"digits": [True]})), {})
    assert "night 1\nkept no answers" in shown.text
    assert "img" not in shown.tags


def test_forest_fills_the_dots_of_intervals_without_zero_alone() -> None:
    a = evaluation({"digits": [False] * 40, "shapes": [True, False] * 20})
    b = evaluation({"digits": [True] * 40, "shapes": [False, True] * 20})
    axis = forest_plot(list(score_differences(a, b).values()), ["digits", "shapes"]).axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["digits", "shapes", "mean of clients", "worst client"]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx([100, 0, 50, 50])
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True, False, False]
