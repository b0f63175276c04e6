from __future__ import annotations

from math import log
from typing import Any

import numpy as np
import pytest

from mor.evaluation.metrics import Evaluation, Routing, flatten, headline, router_metrics


def answers(suite: str, preferred: list[int], right: list[int]) -> list[dict[str, Any]]:
    words = {"image": "i.png", "prompt": "?", "answer": "1", "category": "c", "text": "1"}
    flags = zip(preferred, right, strict=True)
    return [words | {"id": f"{suite}{i}", "preferred": bool(p), "right": bool(r)} for i, (p, r) in enumerate(flags)]


def raw(**changes: Any) -> dict[str, Any]:
    base = {"one": answers("one", [1, 0, 0, 0], [1, 1, 0, 0]), "two": answers("two", [1, 1], [1, 1])}
    aligned = {"one": answers("one", [1, 1, 1, 0], [1, 1, 1, 0]), "two": answers("two", [1, 0], [1, 1])}
    base["held_out"], aligned["held_out"] = answers("held_out", [0], [1]), answers("held_out", [1], [1])
    return {
        "answers": {"base": base, "aligned": aligned},
        "pairs": {"one": {"one": {"style": [True, True], "correctness": [True, False, False, False]}, "two": {"style": []}}},
        "routing": {"one": {"categories": ["c", "d"], "weights": [[0.75, 0.25], [0.25, 0.75]]}},
        "clients": ["one", "two"],
        "wire": {"one": {"up_bytes": 10, "down_bytes": 20}},
        "seconds": {"align": 1.5},
        "settings": {"seed": 0, "router": "means"},
    } | changes


def numbers(evaluation: dict[str, Any]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return headline(Evaluation.model_validate(evaluation), resamples=200, confidence=0.95, rng=rng)


def test_shares_their_mean_the_worst_client_and_the_paired_gain() -> None:
    models = numbers(raw())["models"]

    def values(model: str, measure: str) -> dict[str, float]:
        return {name: interval["value"] for name, interval in models[model][measure].items()}

    # one: 1/4 and 3/4; two: 2/2 and 1/2; mean base (.25 + 1) / 2, aligned (.75 + .5) / 2; held out stays out of both.
    # The worst client is `one` at first (.25) and `two` at last (.5): it gains .25 although `two` itself lost .5.
    assert values("base", "preference") == {"one": 0.25, "two": 1.0, "held_out": 0.0, "mean": 0.625, "worst": 0.25}
    assert values("aligned", "preference") == {"one": 0.75, "two": 0.5, "held_out": 1.0, "mean": 0.625, "worst": 0.5}
    assert values("gain", "preference") == {"one": 0.5, "two": -0.5, "held_out": 1.0, "mean": 0.0, "worst": 0.25}
    # accuracy, one: 2/4 -> 3/4; two: 2/2 -> 2/2; mean .75 -> .875
    assert values("gain", "accuracy") == {"one": 0.25, "two": 0.0, "held_out": 0.0, "mean": 0.125, "worst": 0.25}


def test_intervals_hold_their_value_and_are_certain_where_all_answers_agree() -> None:
    models = numbers(raw())["models"]
    assert models["base"]["preference"]["two"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    one = models["base"]["preference"]["one"]
    assert 0 <= one["low"] < one["value"] < one["high"] <= 1


def test_pair_accuracy_is_the_share_of_pairs_ranked_rightly_and_empty_kinds_are_left_out() -> None:
    # style 2/2, correctness 1/4; `two` has no pairs
    assert numbers(raw())["reward_models"] == {
        "one": {"pair_accuracy": {"one": {"style": 1.0, "correctness": 0.25}, "two": {}}}
    }


def test_a_client_without_a_suite_and_a_project_without_a_held_out_suite_are_evaluated_on_the_rest() -> None:
    only = {model: {"one": suites["one"]} for model, suites in raw()["answers"].items()}
    models = numbers(raw(answers=only))["models"]
    assert set(models["base"]["preference"]) == {"one", "mean", "worst"}
    assert models["gain"]["preference"]["mean"]["value"] == 0.5  # the only client's own


def test_without_a_clients_suite_there_is_no_mean_and_no_worst() -> None:
    only = {model: {"held_out": suites["held_out"]} for model, suites in raw()["answers"].items()}
    assert set(numbers(raw(answers=only))["models"]["gain"]["preference"]) == {"held_out"}


def test_router_accuracy_counts_own_suites_and_splits_ties() -> None:
    routing = {
        "one": Routing(categories=["c", "c"], weights=[[0.9, 0.1], [0.4, 0.6]]),  # right, wrong
        "two": Routing(categories=["d", "d"], weights=[[0.5, 0.5], [0.2, 0.8]]),  # tied, right
        "held_out": Routing(categories=["e"], weights=[[1.0, 0.0]]),  # nobody's
    }
    found = router_metrics(routing, ["one", "two"])
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert found["weights"]["c"] == pytest.approx({"one": 0.65, "two": 0.35})  # (.9 + .4) / 2, (.1 + .6) / 2
    assert found["weights"]["e"] == {"one": 1.0, "two": 0.0}


def test_router_entropy_is_the_mean_in_nats() -> None:
    weights = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]
    found = router_metrics({"one": Routing(categories=["c"] * 3, weights=weights)}, ["one", "two", "three"])
    assert found["entropy"] == pytest.approx((0 + log(2) + log(3)) / 3)


def test_a_uniform_router_scores_one_in_k_whatever_the_clients_order() -> None:
    clients = ["one", "two", "three"]
    routing = {"three": Routing(categories=["c"] * 4, weights=[[1 / 3] * 3] * 4)}
    assert router_metrics(routing, clients)["accuracy"] == pytest.approx(1 / 3)
    assert router_metrics(routing, clients[::-1])["accuracy"] == pytest.approx(1 / 3)


def test_flatten_joins_names_gives_an_interval_its_own_name_and_drops_text() -> None:
    nested = {"models": {"base": {"value": 0.5, "low": 0.4, "high": 0.6}}, "seconds": {"align": 3}, "settings": {"router": "x"}}
    assert flatten(nested) == {"models.base": 0.5, "models.base.low": 0.4, "models.base.high": 0.6, "seconds.align": 3.0}


def test_flat_names_are_those_of_the_contract() -> None:
    names = flatten(numbers(raw(fedavg={"lora_bytes": 5, "full_bytes": 9})))
    assert {
        "models.aligned.preference.worst.low": names["models.aligned.preference.worst.low"],
        "reward_models.one.pair_accuracy.one.correctness": 0.25,
        "router.weights.d.two": 0.75,
        "wire.one.up_bytes": 10.0,
        "fedavg.full_bytes": 9.0,
        "seconds.align": 1.5,
        "settings.seed": 0.0,
    }.items() <= names.items()


def test_models_that_answered_other_questions_are_refused() -> None:
    evaluation = raw()
    evaluation["answers"]["aligned"]["one"].reverse()
    with pytest.raises(ValueError, match="the same questions in the same order"):
        Evaluation.model_validate(evaluation)


def test_a_suite_that_bears_the_name_of_a_summary_is_refused() -> None:
    evaluation = raw()
    for suites in evaluation["answers"].values():
        suites["worst"] = suites["held_out"]
    with pytest.raises(ValueError, match=r"\['worst'\] bear the name of a summary"):
        Evaluation.model_validate(evaluation)
