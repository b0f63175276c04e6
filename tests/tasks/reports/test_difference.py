from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mor.evaluation.metrics import Evaluation, Judged
from tasks.reports.difference import (
    AnswerChange,
    ComparedRun,
    RunDifference,
    ScoreDifference,
    ValueChange,
    compare_results,
    pick_answers,
    value_changes,
    worth_a_line,
)


def reply(number: int, right: bool, *, text: str = "", suite: str = "digits") -> dict[str, Any]:
    row = {"id": f"{suite}-{number}", "image": f"{number}.png", "prompt": "which?", "answer": "7", "category": "c"}
    return row | {"text": text or ("7" if right else "1"), "preferred": right, "right": right}


def evaluation(hits: dict[str, Sequence[bool]], first: int = 0, clients: Sequence[str] = ("digits", "shapes")) -> Evaluation:
    """A policy that answers question ``first``, ``first + 1``... of each suite rightly where ``hits`` says so."""
    answers = {suite: [reply(first + i, hit, suite=suite) for i, hit in enumerate(row)] for suite, row in hits.items()}
    raw: dict[str, Any] = {"answers": {"aligned": answers}, "pairs": {}, "routing": {}, "clients": list(clients), "wire": {}}
    return Evaluation.model_validate(raw | {"seconds": {}, "settings": {}})


def difference(a: ComparedRun, b: ComparedRun) -> RunDifference:
    return compare_results(a, b, resamples=400, confidence=0.95, rng=np.random.default_rng(0))


def score_differences(a: Evaluation, b: Evaluation) -> dict[tuple[str, str], ScoreDifference]:
    found = difference(ComparedRun("a", evaluation=a), ComparedRun("b", evaluation=b))
    return {(score.measure, score.suite): score for score in found.scores}


def test_a_run_compared_with_itself_differs_in_nothing() -> None:
    hits = {"digits": [True, False] * 20, "shapes": [True] * 10}
    side = ComparedRun("a", params={"seed": "0"}, versions={"digits": "1"}, metrics={"kl": 1.0}, evaluation=evaluation(hits))
    found = difference(side, side)
    assert (found.params, found.versions, found.numbers) == ([], [], [])
    assert found.answers == {"digits": [], "shapes": []}
    assert {(score.difference.low, score.difference.value, score.difference.high) for score in found.scores} == {
        (0.0, 0.0, 0.0)
    }


def test_difference_is_b_less_a_for_every_suite_their_mean_and_the_worst() -> None:
    a = evaluation({"digits": [True] * 2 + [False] * 8, "shapes": [True] * 6 + [False] * 4})  # .2 and .6
    b = evaluation({"digits": [True] * 9 + [False] * 1, "shapes": [True] * 5 + [False] * 5})  # .9 and .5
    found = score_differences(a, b)
    values = {suite: round(found["preference", suite].difference.value, 9) for suite in ("digits", "shapes", "mean", "worst")}
    assert values == {"digits": 0.7, "shapes": -0.1, "mean": 0.3, "worst": 0.3}  # .9-.2, .5-.6, .7-.4, .5-.2
    assert {score.paired for score in found.values()} == {10, 20}


def test_pairing_by_question_makes_the_interval_narrower_than_other_questions_do() -> None:
    rng = np.random.default_rng(1)
    hits = (rng.random(200) < 0.5).tolist()
    better = [*([True] * 10), *hits[10:]]
    same = score_differences(evaluation({"digits": hits}), evaluation({"digits": better}))["accuracy", "digits"]
    other = score_differences(evaluation({"digits": hits}), evaluation({"digits": better}, first=1000))["accuracy", "digits"]
    width = {kind: score.difference.high - score.difference.low for kind, score in (("same", same), ("other", other))}
    assert (same.paired, other.paired) == (200, 0)
    assert same.difference.value == pytest.approx(other.difference.value)
    assert width["same"] < 0.4 * width["other"]


def test_only_common_questions_are_compared_where_some_were_added() -> None:
    a = evaluation({"digits": [False] * 10})
    b = evaluation({"digits": [True] * 10 + [False] * 4})  # the same ten, and four new ones
    score = score_differences(a, b)["accuracy", "digits"]
    assert (score.before, score.after, score.paired) == (0.0, 1.0, 10)


def test_mean_is_over_the_clients_that_both_runs_have() -> None:
    a = evaluation({"digits": [False, True]}, clients=["digits"])
    b = evaluation({"digits": [True, True], "shapes": [False, False]})
    found = score_differences(a, b)
    assert ("preference", "shapes") not in found
    assert found["preference", "mean"].difference.value == 0.5


def test_changes_name_what_appeared_and_what_went() -> None:
    assert value_changes({"seed": "0", "gone": "x"}, {"seed": "1", "new": "y"}) == [
        ValueChange("seed", "0", "1"),
        ValueChange("new", None, "y"),
        ValueChange("gone", "x", None),
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
    found = difference(ComparedRun("a", metrics=before), ComparedRun("a", metrics=after))
    assert found.numbers == [ValueChange("router.accuracy", 0.5, 0.6)]
    assert found.scores == []


def test_judges_on_their_own_clients_pairs_are_worth_a_line_and_on_others_not() -> None:
    names = {
        "reward_models.digits.pair_accuracy.digits.style": True,
        "reward_models.digits.pair_accuracy.shapes.style": False,
        "reward_models.digits.calibration.mean": True,
        "router.entropy": True,
        "router.weights.count.digits": False,
        "seconds.align": False,
    }
    assert {name: worth_a_line(ValueChange(name, 0, 1)) for name in names} == names


def answer(before: tuple[bool, bool], after: tuple[bool, bool], number: int = 0) -> AnswerChange:
    made = [
        Judged.model_validate(reply(number, right, text=text) | {"preferred": preferred})
        for text, (preferred, right) in (("x", before), ("y", after))
    ]
    return AnswerChange(*made)


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        ((False, False), (False, True), "better"),
        ((False, True), (True, True), "better"),
        ((True, True), (False, True), "worse"),
        ((False, True), (False, False), "worse"),
        ((False, False), (False, False), "reworded"),
    ],
)
def test_an_answer_is_better_or_worse_by_what_the_annotator_thinks_of_it(
    before: tuple[bool, bool], after: tuple[bool, bool], outcome: str
) -> None:
    assert answer(before, after).outcome == outcome


def test_shown_answers_are_shared_out_among_the_outcomes_and_fill_up() -> None:
    worse = [answer((True, True), (False, False), i) for i in range(9)]
    better = [answer((False, False), (True, True), 100)]
    assert [a.outcome for a in pick_answers([*better, *worse], 4)] == ["worse", "worse", "worse", "better"]
    assert [a.before.id for a in pick_answers(worse, 3)] == ["digits-0", "digits-3", "digits-6"]
    assert pick_answers([], 3) == []
