from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from mor.evaluation.metrics import Evaluation, Reply
from tasks.reports.diff_page import Answer, Change, Gap, Side, changes, compare, forest, pick, render_difference, telling

HOSTILE = "<script>alert('x')</script>"


def reply(number: int, right: bool, *, text: str = "", suite: str = "digits") -> dict[str, Any]:
    row = {"id": f"{suite}-{number}", "image": f"{number}.png", "prompt": "which?", "answer": "7", "category": "c"}
    return row | {"text": text or ("7" if right else "1"), "preferred": right, "right": right}


def evaluation(hits: dict[str, Sequence[bool]], first: int = 0, clients: Sequence[str] = ("digits", "shapes")) -> Evaluation:
    """A policy that answers question ``first``, ``first + 1``... of each suite rightly where ``hits`` says so."""
    answers = {suite: [reply(first + i, hit, suite=suite) for i, hit in enumerate(row)] for suite, row in hits.items()}
    raw: dict[str, Any] = {"answers": {"aligned": answers}, "pairs": {}, "routing": {}, "clients": list(clients), "wire": {}}
    return Evaluation.model_validate(raw | {"seconds": {}, "settings": {}})


def gaps(a: Evaluation, b: Evaluation) -> dict[tuple[str, str], Gap]:
    found = compare(
        Side("a", evaluation=a), Side("b", evaluation=b), resamples=400, confidence=0.95, rng=np.random.default_rng(0)
    )
    return {(gap.measure, gap.suite): gap for gap in found.gaps}


def test_a_run_compared_with_itself_differs_in_nothing() -> None:
    hits = {"digits": [True, False] * 20, "shapes": [True] * 10}
    side = Side("a", params={"seed": "0"}, versions={"digits": "1"}, metrics={"kl": 1.0}, evaluation=evaluation(hits))
    found = compare(side, side, resamples=100, confidence=0.95, rng=np.random.default_rng(0))
    assert (found.params, found.versions, found.numbers) == ([], [], [])
    assert found.answers == {"digits": [], "shapes": []}
    assert {(gap.difference.low, gap.difference.value, gap.difference.high) for gap in found.gaps} == {(0.0, 0.0, 0.0)}


def test_difference_is_b_less_a_for_every_suite_their_mean_and_the_worst() -> None:
    a = evaluation({"digits": [True] * 2 + [False] * 8, "shapes": [True] * 6 + [False] * 4})  # .2 and .6
    b = evaluation({"digits": [True] * 9 + [False] * 1, "shapes": [True] * 5 + [False] * 5})  # .9 and .5
    found = gaps(a, b)
    values = {suite: round(found["preference", suite].difference.value, 9) for suite in ("digits", "shapes", "mean", "worst")}
    assert values == {"digits": 0.7, "shapes": -0.1, "mean": 0.3, "worst": 0.3}  # .9-.2, .5-.6, .7-.4, .5-.2
    assert {gap.paired for gap in found.values()} == {10, 20}


def test_pairing_by_question_makes_the_interval_narrower_than_other_questions_do() -> None:
    rng = np.random.default_rng(1)
    hits = (rng.random(200) < 0.5).tolist()
    better = [*([True] * 10), *hits[10:]]
    same = gaps(evaluation({"digits": hits}), evaluation({"digits": better}))["accuracy", "digits"]
    other = gaps(evaluation({"digits": hits}), evaluation({"digits": better}, first=1000))["accuracy", "digits"]
    width = {kind: gap.difference.high - gap.difference.low for kind, gap in (("same", same), ("other", other))}
    assert (same.paired, other.paired) == (200, 0)
    assert same.difference.value == pytest.approx(other.difference.value)
    assert width["same"] < 0.4 * width["other"]


def test_only_common_questions_are_compared_where_some_were_added() -> None:
    a = evaluation({"digits": [False] * 10})
    b = evaluation({"digits": [True] * 10 + [False] * 4})  # the same ten, and four new ones
    gap = gaps(a, b)["accuracy", "digits"]
    assert (gap.before, gap.after, gap.paired) == (0.0, 1.0, 10)


def test_mean_is_over_the_clients_that_both_runs_have() -> None:
    a = evaluation({"digits": [False, True]}, clients=["digits"])
    b = evaluation({"digits": [True, True], "shapes": [False, False]})
    found = gaps(a, b)
    assert ("preference", "shapes") not in found
    assert found["preference", "mean"].difference.value == 0.5


def test_changes_name_what_appeared_and_what_went() -> None:
    assert changes({"seed": "0", "gone": "x"}, {"seed": "1", "new": "y"}) == [
        Change("seed", "0", "1"),
        Change("new", None, "y"),
        Change("gone", "x", None),
    ]


def test_numbers_leave_out_scores_settings_interval_ends_and_rounding() -> None:
    before = {"router.accuracy": 0.5, "models.aligned.accuracy.mean": 0.1, "settings.seed": 0.0, "kl.low": 1.0, "kl": 1.0}
    after = {
        "router.accuracy": 0.6,
        "models.aligned.accuracy.mean": 0.2,
        "settings.seed": 1.0,
        "kl.low": 2.0,
        "kl": 1.0 + 1e-12,
    }
    found = compare(
        Side("a", metrics=before), Side("a", metrics=after), resamples=1, confidence=0.9, rng=np.random.default_rng(0)
    )
    assert found.numbers == [Change("router.accuracy", 0.5, 0.6)]
    assert found.gaps == []


def test_judges_on_their_own_clients_pairs_are_worth_a_line_and_on_others_not() -> None:
    names = {
        "reward_models.digits.pair_accuracy.digits.style": True,
        "reward_models.digits.pair_accuracy.shapes.style": False,
        "reward_models.digits.calibration.mean": True,
        "router.entropy": True,
        "router.weights.count.digits": False,
        "seconds.align": False,
    }
    assert {name: telling(Change(name, 0, 1)) for name in names} == names


def answer(before: tuple[bool, bool], after: tuple[bool, bool], number: int = 0) -> Answer:
    made = [
        Reply.model_validate(reply(number, right, text=text) | {"preferred": preferred})
        for text, (preferred, right) in (("x", before), ("y", after))
    ]
    return Answer(*made)


@pytest.mark.parametrize(
    ("before", "after", "turn"),
    [
        ((False, False), (False, True), "better"),
        ((False, True), (True, True), "better"),
        ((True, True), (False, True), "worse"),
        ((False, True), (False, False), "worse"),
        ((False, False), (False, False), "reworded"),
    ],
)
def test_an_answer_turns_by_what_the_annotator_thinks_of_it(
    before: tuple[bool, bool], after: tuple[bool, bool], turn: str
) -> None:
    assert answer(before, after).turn == turn


def test_shown_answers_are_shared_out_among_the_turns_and_fill_up() -> None:
    worse = [answer((True, True), (False, False), i) for i in range(9)]
    better = [answer((False, False), (True, True), 100)]
    assert [a.turn for a in pick([*better, *worse], 4)] == ["worse", "worse", "worse", "better"]
    assert [a.before.id for a in pick(worse, 3)] == ["digits-0", "digits-3", "digits-6"]
    assert pick([], 3) == []


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(a: Side, b: Side, images: dict[str, bytes]) -> Page:
    found = compare(a, b, resamples=100, confidence=0.95, rng=np.random.default_rng(0))
    picture = b"png" if found.gaps else None
    return Page(render_difference(found, picture, images, samples=2, confidence=0.95, links={"both": "http://127.0.0.1:5000"}))


def test_page_shows_changes_scores_and_answers_and_runs_nothing() -> None:
    a, b = evaluation({"digits": [True] * 4}), evaluation({"digits": [False] * 4})
    b.answers["aligned"]["digits"][0] = b.answers["aligned"]["digits"][0].model_copy(update={"text": HOSTILE})
    shown = page(
        Side("night 1", params={"seed": "0"}, versions={"digits": "aaaa"}, evaluation=a),
        Side("night 2", params={"seed": HOSTILE}, versions={"digits": "bbbb"}, evaluation=b),
        {"0.png": b"png"},
    )
    assert "script" not in shown.tags
    assert shown.text.count(HOSTILE) == 2  # the setting and the answer, as text
    assert "falls" in shown.text
    assert "aaaabbbb" in shown.text
    assert len(shown.loads) == 2  # the figure and one question's image; the other has none here
    assert all(source.startswith("data:image/png;base64,") for source in shown.loads)


def test_page_says_which_run_has_kept_no_answers() -> None:
    shown = page(Side("night 1"), Side("night 2", evaluation=evaluation({"digits": [True]})), {})
    assert "night 1\nkept no answers" in shown.text
    assert "img" not in shown.tags


def test_forest_fills_the_dots_of_intervals_without_zero_alone() -> None:
    a = evaluation({"digits": [False] * 40, "shapes": [True, False] * 20})
    b = evaluation({"digits": [True] * 40, "shapes": [False, True] * 20})
    axis = forest(list(gaps(a, b).values()), ["digits", "shapes"]).axes[0]
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["digits", "shapes", "mean of clients", "worst client"]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx([100, 0, 50, 50])
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, True, False, False]
