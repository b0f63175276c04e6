"""The MLflow model registry: which policy and which reward models there are, which is judged, which serves.

``mor-policy`` and one ``mor-reward-<client>`` per client. The alias ``candidate`` is on what the last night made, ``champion``
on what serves. The champion is what the alias of ``mor-policy`` says: that version's tags name the reward models that it was
aligned with and the champion before it, so that the other aliases can be set again after a kill. The alias ``baseline`` is on
the version that a person approved, with who and when as tags: nights together may lose only so much against it.

Whoever reads the registry reads all of it. So tags hold names, numbers and our own sentences, and nothing that a client wrote.
"""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mor.config import Gate
from mor.errors import UserError
from mor.evaluation.gate import BASELINE, CHAMPION, Verdict
from tasks.tracking.store import mlflow_client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

POLICY = "mor-policy"
CANDIDATE = "candidate"  # an alias, as are CHAMPION and BASELINE
EVALUATION = "evaluation.json"  # beside the model: what its policy answered
TAG = 100_000  # characters that a version's tag holds
AUTOMATIC = "automatically, as the first champion"  # who pinned a baseline, where no person did


@dataclass(frozen=True)
class Candidate:
    """A policy and the reward models that it was aligned with, by the versions of their registered models."""

    night: str
    policy: int
    rewards: dict[str, int]


def reward_name(client: str) -> str:
    """The registered name of a client's reward model."""
    return f"mor-reward-{client}"


def versions_of(name: str) -> list[ModelVersion]:
    """All versions of a registered model."""
    return list(mlflow_client().search_model_versions(f"name = '{name}'", max_results=1000))


# --- what serves -------------------------------------------------------------------------------------------------------


def champion() -> Candidate | None:
    """What serves, if anything does."""
    return _aliased(CHAMPION)


def baseline() -> Candidate | None:
    """What nights together may lose little against, if anything is pinned."""
    return _aliased(BASELINE)


def candidate() -> Candidate | None:
    """What the last night made, if there was one."""
    return _aliased(CANDIDATE)


def required_champion() -> Candidate:
    """What serves; raises ``UserError`` where nothing does yet."""
    if (serving := champion()) is None:
        raise UserError("There is no champion yet: a night makes one (`mor night`)")
    return serving


def is_judged(gate: Gate) -> bool:
    """Whether there is a candidate, and it serves or was judged by the gate's present settings and baseline."""
    found = candidate()
    if found is None or found == champion():
        return found is not None
    tags = mlflow_client().get_model_version(POLICY, str(found.policy)).tags
    return bool(tags.get("mor.gate") == gate.model_dump_json() and tags.get("mor.baseline") == _pinned())


def _pinned() -> str:
    """The baseline's version, as a tag."""
    pinned = baseline()
    return str(pinned.policy) if pinned else "none"


def _aliased(alias: str) -> Candidate | None:
    found = [model for model in mlflow_client().search_registered_models(f"name = '{POLICY}'") if alias in model.aliases]
    return candidate_of(str(found[0].aliases[alias])) if found else None


def candidate_of(version: str) -> Candidate:
    """What a version of the policy was aligned with, by its tags."""
    tags = mlflow_client().get_model_version(POLICY, version).tags
    return Candidate(tags["mor.night"], int(version), json.loads(tags["mor.rewards"]))


# --- what changes that -------------------------------------------------------------------------------------------------


def promote(candidate: Candidate, verdict: Verdict, gate: Gate) -> None:
    """Make the candidate champion if it passed; the verdict becomes tags of its version either way."""
    version, before = str(candidate.policy), champion()
    checks = json.dumps([asdict(check) for check in verdict.checks])
    tags = {
        "mor.verdict": "passed" if verdict.passed else "refused",
        "mor.reasons": "; ".join(verdict.reasons)[:5000],
        "mor.checks": checks if len(checks) <= TAG else "[]",
        "mor.gate": gate.model_dump_json(),
        "mor.baseline": _pinned(),
    }
    if verdict.passed and before is not None and before.policy != candidate.policy:
        tags["mor.previous"] = str(before.policy)
    for key, value in tags.items():
        mlflow_client().set_model_version_tag(POLICY, version, key, value)
    if verdict.passed:
        mlflow_client().set_registered_model_alias(POLICY, CHAMPION, version)
        restore_aliases()


def restore_aliases() -> None:
    """Point the reward models' ``champion`` at those of the policy's, and pin a champion where no baseline is.

    A kill may have come between. The reward model of a client that has no part in the champion loses the alias.
    """
    serving = champion()
    due = {reward_name(client): str(version) for client, version in serving.rewards.items()} if serving else {}
    for model in mlflow_client().search_registered_models(f"name LIKE '{reward_name('%')}'", max_results=1000):
        held, wanted = model.aliases.get(CHAMPION), due.get(model.name)
        if wanted and str(held) != wanted:
            mlflow_client().set_registered_model_alias(model.name, CHAMPION, wanted)
        elif held is not None and not wanted:
            mlflow_client().delete_registered_model_alias(model.name, CHAMPION)
    if serving and baseline() is None:
        _pin(str(serving.policy), AUTOMATIC)


def pin(wanted: str | None = None) -> Candidate:
    """Make a version of the policy, by its number or its night, the baseline; the champion where none is named.

    Whoever runs this approves of it, and is named in its tags. Raises ``UserError`` for what the gate has not let pass.
    """
    serving = required_champion() if wanted is None else champion()
    own = str(serving.policy) if serving else ""
    wanted = wanted or own
    known = {str(version.version): version for version in versions_of(POLICY)}
    passed = {number: v for number, v in known.items() if number == own or v.tags.get("mor.verdict") == "passed"}
    fitting = [number for number, v in passed.items() if v.tags.get("mor.night") == wanted.removeprefix("night/")]
    number = wanted if wanted in known else max(fitting, key=int, default="")  # a number is a version before it is a night
    if number not in passed:
        there = ", ".join(f"{number} (night {passed[number].tags.get('mor.night')})" for number in sorted(passed, key=int))
        raise UserError(
            f"{wanted!r} is no version of {POLICY} that passed the gate, nor a night that made one; known: {there or 'none'}"
        )
    _pin(number, getpass.getuser())
    return candidate_of(number)


def _pin(version: str, who: str) -> None:
    """The tags first: with the alias it is done."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    for key, value in {"mor.pinned_by": who, "mor.pinned_at": when}.items():
        mlflow_client().set_model_version_tag(POLICY, version, key, value)
    mlflow_client().set_registered_model_alias(POLICY, BASELINE, version)


def rollback() -> tuple[Candidate, Candidate]:
    """Let the champion before serve again; returns from and to. Raises ``UserError`` where there is none."""
    serving = required_champion()
    previous = mlflow_client().get_model_version(POLICY, str(serving.policy)).tags.get("mor.previous")
    if previous is None:
        first = f"Version {serving.policy} of {POLICY}, night {serving.night}, is the first champion"
        raise UserError(f"{first}: there is none before it")
    mlflow_client().set_registered_model_alias(POLICY, CHAMPION, previous)
    restore_aliases()
    return serving, candidate_of(previous)
