"""Align the base in rounds (``mor.alignment.rounds``), with curves and weights written as they come."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.torch import load_file

from mor.alignment.rounds import Round, run_rounds, weigh
from mor.config import Params
from mor.data.public import PublicPrompt
from mor.federation.ledger import Ledger
from mor.files import fresh_folder
from tasks.project import paths
from tasks.project.checkpoints import resumable
from tasks.project.clients import server_of
from tasks.project.decorators import task
from tasks.tracking.open_run import StageRun
from tasks.tracking.runs import stage_run

console = Console(stderr=True)


@task
def align_policy(params: Params) -> None:
    """All rounds; goes on from the last checkpoint of the last unfinished round."""
    sections = {"seed": params.seed, "base": params.base, "router": params.router, "grpo": params.grpo}
    with stage_run("align", sections) as run:
        key = params.model_dump(include={"seed", "base", "clients", "router", "grpo"})
        folder = resumable("align", key, [paths.ROUTER, paths.REWARDS, paths.VALIDATED_PUBLIC])
        features = load_file(paths.ROUTER / "features.safetensors")["features"]
        server = server_of(params, None, Ledger(), features)
        curves: list[dict[str, Any]] = []
        weights: list[dict[str, Any]] = []
        for done in run_rounds(server, folder, fitted=paths.ROUTER):
            if done.number == 1:
                weights += weights_by_category(0, weigh(server, done.trained_with).values(), server.names)
            weights += weights_by_category(done.number, weigh(server, done.router).values(), server.names)
            curves += done.curve
            _log_round(run, done)
        _publish(folder / "rounds", params.grpo.rounds)
        _write_csv(paths.ROUNDS, curves)
        _write_csv(paths.ROUTER_WEIGHTS, weights)
        run.metrics({f"align.{name}": float(curves[-1][name]) for name in ("reward", "kl", "entropy") if name in curves[-1]})
        for made in (paths.ROUNDS, paths.ROUTER_WEIGHTS, paths.POLICY):
            run.artifact(made)


def weights_by_category(number: int, prompts: Iterable[PublicPrompt], names: list[str]) -> list[dict[str, Any]]:
    """Each client's mean weight on the prompts of each category, as rows of ``reports/router_weights.csv``."""
    by_category: dict[str, list[Any]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category or "", []).append(prompt.weights)
    return [
        {"round": number, "category": category, "client": name, "weight": round(float(weight), 6)}
        for category, rows in sorted(by_category.items())
        for name, weight in zip(names, np.mean(rows, axis=0), strict=True)
    ]


def _log_round(run: StageRun, done: Round) -> None:
    """A child run of the round's curves; says who did not answer."""
    with run.child(f"align round {done.number}", {"round": done.number}) as child:
        for row in done.curve:
            child.metrics({k: v for k, v in row.items() if k not in ("round", "step")}, step=row["step"])
        child.metrics({f"refit.{name}": float(value) for name, value in vars(done.refit).items()})
        child.metrics({f"absent.{name}": float(n) for name, n in done.absent.items()})
    for name, n in done.absent.items():
        console.print(f"[yellow]client {name} did not answer[/] {n} times in round {done.number}", highlight=False)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _publish(rounds: Path, last: int) -> None:
    """The last round's adapter, every round's router and the ledger, moved into ``models/policy`` at once."""
    with fresh_folder(paths.POLICY) as fresh:
        shutil.copytree(rounds / str(last) / "adapter", fresh, dirs_exist_ok=True)
        shutil.copy(rounds / str(last) / "ledger.json", fresh / "ledger.json")
        for number in range(1, last + 1):
            target = fresh / "rounds" / str(number)
            target.mkdir(parents=True)
            for path in (rounds / str(number)).glob("router.*"):
                shutil.copy(path, target / path.name)
