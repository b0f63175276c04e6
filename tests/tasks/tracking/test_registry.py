"""The registry on a real MLflow store: what is registered, promoted, pinned, rolled back."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mor.config import load_params
from mor.errors import UserError
from mor.evaluation.gate import Check, Verdict
from tasks.project import paths
from tasks.tracking import judging, predicting, registry
from tests.tasks.tracking.small_project import PASSED, alias, evaluate, folder, project, register  # noqa: F401

REFUSED = Verdict([Check("kl", False, 3.0, None, None, 2.0, "the policy is 3.00 nats from the base; the budget is 2")])


def test_nothing_serves_before_a_promotion_and_that_is_said() -> None:
    assert registry.champion() is None
    with pytest.raises(UserError, match="no champion yet"):
        registry.rollback()
    with pytest.raises(UserError, match="no champion yet"):
        predicting.ask_champion(paths.EVAL / "x.png", "?")
    with pytest.raises(UserError, match=r"nope\.png: no such file"):
        predicting.ask_champion(Path("nope.png"), "?")


def test_registering_the_same_again_makes_no_version() -> None:
    one, _ = register("1", 1)
    assert register("3", 1)[0] == one


class Killed(BaseException):
    """Nothing catches it."""


def test_a_promotion_that_was_killed_half_way_is_settled_and_can_be_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise Killed

    first, _ = register("1", 1)
    registry.promote(first, PASSED, load_params().gate)
    evaluate(0.9)
    second, params = register("4", 4, scale=2.0)
    verdict = judging.judge_candidate(second, params)
    assert verdict.passed
    assert verdict.checks[0].value == pytest.approx(0.1)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "restore_aliases", die)
        with pytest.raises(Killed):
            registry.promote(second, verdict, load_params().gate)
    assert registry.champion() == second
    assert alias("mor-reward-documents", "champion") == first.rewards["documents"] != second.rewards["documents"]
    registry.restore_aliases()
    assert alias("mor-reward-documents", "champion") == second.rewards["documents"]
    assert judging.judge_candidate(second, params) == verdict  # the night that goes on says what it would have said
    registry.promote(second, verdict, load_params().gate)
    assert registry.rollback() == (second, first)
    assert registry.champion() == first
    assert alias("mor-reward-documents", "champion") == first.rewards["documents"]
    with pytest.raises(UserError, match="none before it"):
        registry.rollback()


def test_a_refused_candidate_is_judged_again_when_the_gate_has_changed() -> None:
    candidate, params = register("5", 5)
    assert not registry.is_judged(params.gate)
    registry.promote(candidate, REFUSED, params.gate)
    assert registry.is_judged(params.gate)
    wider = params.model_copy(update={"gate": params.gate.model_copy(update={"margin": 0.9})})
    assert not registry.is_judged(wider.gate)
    registry.promote(candidate, PASSED, params.gate)
    assert registry.is_judged(wider.gate)  # it serves


def test_a_client_that_left_has_no_champion() -> None:
    one, _ = register("1", 1)
    registry.promote(one, PASSED, load_params().gate)
    client = MlflowClient()
    client.create_registered_model("mor-reward-gone")
    source = str(client.get_model_version("mor-reward-documents", str(one.rewards["documents"])).source)
    client.create_model_version("mor-reward-gone", source)
    client.set_registered_model_alias("mor-reward-gone", "champion", "1")
    registry.restore_aliases()
    assert "champion" not in client.get_registered_model("mor-reward-gone").aliases
    assert alias("mor-reward-documents", "champion") == one.rewards["documents"]


def test_the_first_champion_is_the_baseline_until_a_person_pins_another(monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    client.delete_registered_model_alias("mor-policy", "baseline")  # as of a registry that is older than baselines
    first, params = register("1", 1)
    registry.promote(first, PASSED, params.gate)
    assert registry.baseline() == first
    tags = client.get_model_version("mor-policy", str(first.policy)).tags
    assert tags["mor.pinned_by"].startswith("automatically")
    evaluate(0.78)
    second, _ = register("2", 2)
    registry.promote(second, PASSED, params.gate)
    assert registry.champion() == second
    assert registry.baseline() == first  # no night moves it
    assert registry.pin() == second == registry.baseline()
    tags = client.get_model_version("mor-policy", str(second.policy)).tags
    assert tags["mor.pinned_by"] == getpass.getuser()
    assert tags["mor.pinned_at"][:2] == "20"
    registry.rollback()
    assert (registry.champion(), registry.baseline()) == (first, second)  # nor does a rollback
    assert registry.pin("night/1") == first == registry.pin(str(first.policy))


def test_only_a_version_that_passed_can_be_pinned() -> None:
    first, params = register("1", 1)
    registry.promote(first, PASSED, params.gate)
    refused, _ = register("refused", 6)
    registry.promote(refused, REFUSED, params.gate)
    for wanted in (str(refused.policy), "refused", "999", "2031-01-01"):
        with pytest.raises(UserError, match=rf"'{wanted}' is no version of mor-policy that passed.*{first.policy} \(night 1\)"):
            registry.pin(wanted)
