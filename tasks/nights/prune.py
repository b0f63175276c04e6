"""Delete what neither champions nor the last nights need: DVC's cache, old nights in MLflow and its registry, their tags.

What stays is found first, from two facts: a night that left something is the git tag ``night/<name>``, and versions in the
registry say by their tags from which night they are and what they need. Everything else that a night has made may go.
Each deletion can be repeated, so that one that was killed is finished by the next.

What only a person has made is never deleted: runs without ``mor.night``, other tags and branches with their data, DVC's
experiments. One exception: MLflow's trash is emptied for good, whoever put a run there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from mor.config import Nightly
from mor.errors import UserError
from mor.evaluation.gate import BASELINE, CHAMPION
from tasks.nights.git import NIGHT_TAG, dvc_remotes, output_of, tagged_nights
from tasks.nights.journal import CURRENT, night_lock
from tasks.project.dvc import DVC
from tasks.reports.units import in_bytes
from tasks.tracking import store
from tasks.tracking.registry import POLICY, reward_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

LISTED = 20  # names that a line lists
MLFLOW_GC = [sys.executable, "-m", "mlflow", "gc"]


@dataclass(frozen=True)
class Plan:
    """What stays and what goes. ``kept`` says why each night stays; versions are (registered model, number)."""

    kept: dict[str, str]
    nights: list[str]  # whose tags go
    runs: list[str]  # ids, parents after their children
    versions: list[tuple[str, str]]
    files: list[str]  # addresses of those versions' files
    needed_runs: list[str]  # ids of those that versions which stay came from


def prune_nights(settings: Nightly, yes: bool = False, cloud: bool = False) -> None:
    """Say what goes and, with ``yes``, delete it; with ``cloud`` also from the DVC remote and from ``nightly.git_remote``."""
    console = Console()
    with night_lock():
        if CURRENT.exists():
            raise UserError(f"{CURRENT}: a night did not end well and may need anything; let one do so (mor night) first")
        if cloud:
            _reach_remotes(settings.git_remote)
        plan = make_plan(settings.keep_nights, cloud)
        show_plan(plan, console, cloud)
        if not yes:
            console.print("\nNothing was deleted. [bold]mor prune --yes[/] deletes it.", highlight=False)
            return
        before = _cache_bytes()
        carry_out(plan, settings.git_remote, cloud)
        console.print(f"\nDeleted; DVC's cache went from {in_bytes(before)} to {in_bytes(_cache_bytes())}.", highlight=False)


# --- what stays --------------------------------------------------------------------------------------------------------


def make_plan(last: int, cloud: bool = False) -> Plan:
    """What may go besides the ``last`` nights; raises ``UserError`` where that cannot be known without risk."""
    nights, registry = sorted(tagged_nights(), key=in_order), read_registry(store.mlflow_client())
    kept = _kept_nights(nights, registry, last)
    _refuse_risks(kept, nights, registry, cloud)
    stay = _kept_versions(registry, kept)
    needed = {version.run_id for key, version in registry.versions.items() if key in stay and version.run_id}
    families = [family for family in _night_families() if _may_go(family, kept, nights, needed, last)]
    go = [key for key in registry.versions if key not in stay]
    used = {str(registry.versions[key].source) for key in stay}
    runs = [run.info.run_id for family in families for run in reversed(family)]
    files = sorted({str(registry.versions[key].source) for key in go} - used)
    return Plan(kept, [night for night in nights if night not in kept], runs, go, files, sorted(needed))


def in_order(night: str) -> tuple[str, int]:
    """What nights are sorted by: the second night of a day, ``2026-01-02.2``, comes after the first and before the tenth."""
    day, _, number = night.partition(".")
    return day, int(number) if number.isdigit() else 1


@dataclass(frozen=True)
class RegisteredModels:
    """Our versions by registered model and number, and those that an alias names.

    ``serving`` holds the policies that nights are measured by, as far as there are any: ``baseline``, ``previous champion`` and
    ``champion``, the last the best reason to keep a night.
    """

    versions: dict[tuple[str, str], ModelVersion]
    aliased: set[tuple[str, str]]
    serving: dict[str, ModelVersion]


def read_registry(client: MlflowClient) -> RegisteredModels:
    """What MLflow's registry holds of ours."""
    versions, aliased, policies = {}, set(), {}
    for model in client.search_registered_models(max_results=1000):
        if model.name != POLICY and not model.name.startswith(reward_name("")):
            continue
        for version in client.search_model_versions(f"name = '{model.name}'", max_results=10000):
            versions[model.name, str(version.version)] = version
        aliased |= {(model.name, str(number)) for number in model.aliases.values()}
        if model.name == POLICY:
            policies = {alias: versions[POLICY, str(number)] for alias, number in model.aliases.items()}
    champion = policies.get(CHAMPION)
    previous = versions.get((POLICY, champion.tags.get("mor.previous", ""))) if champion else None
    found = {"baseline": policies.get(BASELINE), "previous champion": previous, "champion": champion}
    return RegisteredModels(versions, aliased, {name: version for name, version in found.items() if version})


def _kept_nights(nights: list[str], registry: RegisteredModels, last: int) -> dict[str, str]:
    """The nights that stay, each with the reason; a better reason replaces another."""
    kept = dict.fromkeys(nights[-last:] if last else [], f"one of the last {last}")
    kept |= {registry.versions[key].tags.get("mor.night", ""): "candidate" for key in registry.aliased if key[0] == POLICY}
    kept |= {version.tags.get("mor.night", ""): name for name, version in registry.serving.items()}
    return {night: why for night, why in kept.items() if night}


def _refuse_risks(kept: Mapping[str, str], nights: Collection[str], registry: RegisteredModels, cloud: bool) -> None:
    """A champion whose night has no tag would lose its data; a store without champion may be that of another clone."""
    for night, why in kept.items():
        if night not in nights and why in ("champion", "previous champion"):
            raise UserError(
                f"the {why} is of night {night}, and no tag {NIGHT_TAG}{night} keeps its data: name the commit whose dvc.lock "
                f"it was trained from (git tag {NIGHT_TAG}{night} <commit>), or fetch the tags (git fetch --tags)"
            )
    if cloud and "champion" not in registry.serving:
        raise UserError(
            "no champion in the model registry here, so that what remotes must keep is not known: "
            "prune them from where the nights run, or set MLFLOW_TRACKING_URI to its store"
        )


def _kept_versions(registry: RegisteredModels, kept: Collection[str]) -> set[tuple[str, str]]:
    """Versions with an alias, those of nights that stay or of no known night, and the reward models of policies that stay."""
    of_nights = {key for key, version in registry.versions.items() if version.tags.get("mor.night") in {None, *kept}}
    stay = registry.aliased | of_nights
    for key in list(stay):
        rewards = json.loads(registry.versions[key].tags.get("mor.rewards", "{}"))
        stay |= {(reward_name(client), str(number)) for client, number in rewards.items()} & set(registry.versions)
    return stay


def _night_families() -> list[list[Run]]:
    """Every night's run with the runs below it, those in MLflow's trash too."""
    below: dict[str, list[Run]] = {}
    for run in store.search_runs("", deleted=True):
        below.setdefault(run.data.tags.get("mlflow.parentRunId", ""), []).append(run)
    return [[run, *below.get(run.info.run_id, [])] for run in below.get("", []) if "mor.night" in run.data.tags]


def _may_go(family: list[Run], kept: Collection[str], nights: list[str], needed: Collection[str], last: int) -> bool:
    """A night's runs go if it is older than the last ones, left none of what champions need, and no version that stays."""
    night = family[0].data.tags["mor.night"]
    old = last == 0 or (len(nights) >= last and in_order(night) < in_order(nights[-last]))
    return old and night not in kept and not {run.info.run_id for run in family} & set(needed)


# --- what goes ---------------------------------------------------------------------------------------------------------


def carry_out(plan: Plan, git_remote: str = "", cloud: bool = False) -> None:
    """Delete what the plan names, then what DVC's cache holds for no tag, branch, experiment or the working folder."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = store.mlflow_client()
    for address in plan.files:  # a version's run may stay for another's sake
        get_artifact_repository(address).delete_artifacts()
    for name, number in plan.versions:
        client.delete_model_version(name, number)
    for run in plan.runs:
        client.delete_run(run)
    for run in plan.needed_runs:  # in the trash by someone's mistake, perhaps
        if client.get_run(run).info.lifecycle_stage == "deleted":
            client.restore_run(run)
    if plan.runs:
        _empty_trash()
    if plan.nights:
        output_of("git", "tag", "--delete", *(NIGHT_TAG + night for night in plan.nights))
    everywhere = ["--workspace", "--all-tags", "--all-branches", "--all-experiments"]
    output_of(*DVC, "gc", "--quiet", "--force", *everywhere, *(["--cloud"] if cloud else []))
    if cloud and git_remote:
        _forget_tags(git_remote, plan.kept)


def _empty_trash() -> None:
    """``mlflow gc``, which needs the store itself and not its server."""
    import mlflow

    address = mlflow.get_tracking_uri()
    if address.startswith(("http://", "https://")):
        Console().print(f"MLflow's server at {address} has the deleted runs in its trash: run [bold]mlflow gc[/] there.")
        return
    output_of(*MLFLOW_GC, "--tracking-uri", address, "--backend-store-uri", address)


def _forget_tags(remote: str, kept: Collection[str]) -> None:
    """Delete the tags of nights on a git remote, except of those that stay."""
    listed = output_of("git", "ls-remote", "--tags", "--refs", remote, f"refs/tags/{NIGHT_TAG}*").splitlines()
    gone = [name for name in (line.split()[1] for line in listed) if name.removeprefix(f"refs/tags/{NIGHT_TAG}") not in kept]
    if gone:
        output_of("git", "push", "--quiet", remote, *(f":{name}" for name in gone))


def _reach_remotes(git_remote: str) -> None:
    """Make sure that there is a DVC remote, and learn the nights that a git remote knows of."""
    if not dvc_remotes():
        raise UserError("there is no DVC remote to prune: leave --cloud out, or set one (docs/operations.md)")
    if git_remote:
        output_of("git", "fetch", "--quiet", "--tags", git_remote)


def show_plan(plan: Plan, console: Console, cloud: bool = False) -> None:
    """Print what stays and why, and what goes."""
    console.print("[bold]Stays[/]")
    for night, why in sorted(plan.kept.items(), key=lambda item: in_order(item[0])):
        console.print(f"  night {night}  [dim]{why}[/]", highlight=False)
    if not plan.kept:
        console.print("  no night has left anything yet")
    console.print("[bold]Goes[/]")
    places = "DVC's cache" + (" and its remote" if cloud else "")
    for title, names in {
        "tags of nights": [NIGHT_TAG + night for night in plan.nights],
        "versions in the registry": [f"{name} {number}" for name, number in plan.versions],
        "runs in MLflow": [run[:8] for run in plan.runs],
    }.items():
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        console.print(f"  {title}: {', '.join(names[:LISTED]) or 'none'}{more}", highlight=False)
    console.print(f"  from {places}: what no tag that stays, branch, experiment or this folder's own state needs")


def _cache_bytes() -> int:
    folder, total = Path(output_of(*DVC, "cache", "dir")), 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.stat().st_size if file.is_file() else 0
    return total
