"""Align the base in rounds: GRPO on the routed mixture, then the router's refit on fresh answers.

Where a client answers with another reward model than in the round before, for the first time, or again, the router is fitted
anew instead: a trust region would hold on to what was true of the old one.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import TrainerCallback

from mor.alignment.grpo import Refit, load_policy, refit_router, train_round
from mor.alignment.mixed_reward import MixedReward, PublicPrompt
from mor.alignment.mixtures import MIXTURES
from mor.config import Params, load_params
from mor.data.schema import Prompt
from mor.federation.ledger import Ledger
from mor.federation.quorum import ask
from mor.federation.remote import RemoteClient
from mor.routing.router import LEARNED, Router
from mor.seeds import integer, stream
from mor.vlm.load import Vlm
from mor.vlm.progress import last_checkpoint
from tasks.project import paths
from tasks.project.checkpoints import resumable
from tasks.project.clients import connect_clients
from tasks.project.decorators import task
from tasks.project.files import move_in
from tasks.stages.router import FINGERPRINTS, fit_and_control, public_prompts, unfitted
from tasks.tracking.open_run import StageRun
from tasks.tracking.runs import stage_run

console = Console(stderr=True)
CURVES = {  # TRL's own "reward" is left out: it averages to 0 wherever groups are standardised
    "mixed_score": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "step_time": "seconds",
}


class KeepLedger(TrainerCallback):
    """Save the byte ledger before every checkpoint, so that a resumed run counts what an uninterrupted one counts."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:
            self.ledger.save(Path(args.output_dir) / f"ledger-{state.global_step}.json")


def _saved_ledger(trainer: Path, last_round: Path) -> Path | None:
    """The ledger of an unfinished round's last checkpoint, or of the round before it."""
    if checkpoint := last_checkpoint(trainer):
        return trainer / f"{Path(checkpoint).name.replace('checkpoint', 'ledger')}.json"
    return last_round / "ledger.json" if last_round.exists() else None


def weigh(rows: list[Prompt], images: list[Any], router: Router, features: torch.Tensor) -> dict[str, PublicPrompt]:
    """The public prompts with the router's weights, by id."""
    weights = router.weights(features, [row.category for row in rows]).double().numpy()
    return {
        row.id: PublicPrompt(row.id, row.prompt, image, row.category, weight)
        for row, image, weight in zip(rows, images, weights, strict=True)
    }


def _weights_by_category(prompts: dict[str, PublicPrompt], number: int, names: list[str]) -> list[dict[str, Any]]:
    table = []
    for category in sorted({prompt.category or "" for prompt in prompts.values()}):
        mean = np.mean([p.weights for p in prompts.values() if (p.category or "") == category], axis=0)
        table += [
            {"round": number, "category": category, "client": name, "weight": round(float(w), 6)}
            for name, w in zip(names, mean, strict=True)
        ]
    return table


def _curve(log: list[dict[str, float]], number: int, steps: int) -> list[dict[str, Any]]:
    rows = []
    for entry in log:
        row: dict[str, Any] = {"round": number, "step": (number - 1) * steps + int(entry["step"])}
        row |= {name: entry[key] for key, name in CURVES.items() if key in entry}
        row |= {key.replace("/", "_"): v for key, v in entry.items() if key.startswith(("score/", "weight/"))}
        rows.append(row)
    return rows


def one_round(
    number: int,
    params: Params,
    prompts: dict[str, PublicPrompt],
    router: Router,
    features: torch.Tensor,
    clients: list[RemoteClient],
    ledger: Ledger,
    folder: Path,
) -> None:
    """Train, refit and leave everything of round ``number`` in ``folder / rounds / number``, moved in at once."""
    settings = params.grpo
    reward = MixedReward(
        clients, prompts, settings.generations, settings.calibration, params.router.top_k, params.router.least_weight,
        settings.quorum, settings.coverage, MIXTURES[settings.mixture],
    )  # fmt: skip
    last = folder / "rounds" / str(number - 1) / "adapter"
    model, log = train_round(
        params.base,
        reward,
        settings,
        seed=integer(params.seed, "align", number),
        adapter=last if number > 1 else None,
        checkpoints=folder / f"trainer-{number}",
        callbacks=[KeepLedger(ledger)],
    )
    fresh = folder / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(str(fresh / "adapter"))
    now, changed = fingerprints(clients, last.parent, router.absent)
    router, refit = next_router(number, params, prompts, router, features, clients, changed, fresh / "adapter")
    router.save(fresh)
    ledger.save(fresh / "ledger.json")
    (fresh / FINGERPRINTS).write_text(json.dumps(now))
    (fresh / "log.json").write_text(
        json.dumps({"curve": _curve(log, number, settings.steps), "absent": reward.absent, "refit": vars(refit)})
    )
    move_in(fresh, folder / "rounds" / str(number))


def next_router(
    number: int,
    params: Params,
    prompts: dict[str, PublicPrompt],
    router: Router,
    features: torch.Tensor,
    clients: list[RemoteClient],
    changed: list[str],
    adapter: Path | None,
) -> tuple[Router, Refit]:
    """The router after round ``number``: refitted on fresh answers of the policy, or fitted anew for who has ``changed``.

    Before the first round, as round 0 without an ``adapter``, the policy is the base. A router that knows nothing yet has
    nothing to be held to, so no trust region holds it.
    """
    if not params.router.refit_pairs or router.kind not in LEARNED:
        return router, Refit(0, float("nan"))
    if changed:
        who = ", ".join(changed)
        console.print(f"[yellow]answering with another reward model, or again: {who}.[/] The router is fitted anew")
        if router.kind != "online":
            base = Vlm.load(params.base, params.evaluation.batch_size)
            return fit_and_control(params, clients, base, features, router)[0], Refit(0, float("nan"))
        router = unfitted(params, features)
    size = params.evaluation.batch_size
    return refit_router(
        router, load_policy(params.base, adapter, size) if adapter else Vlm.load(params.base, size), clients,
        list(prompts.values()), features, budget=params.router.refit_pairs,
        trust=params.router.trust if number and not changed else 0.0, temperature=params.grpo.temperature,
        max_tokens=params.grpo.max_completion_tokens, quorum=params.grpo.quorum, rng=stream(params.seed, "refit", number),
    )  # fmt: skip


def fingerprints(clients: list[RemoteClient], last: Path, absent: list[str]) -> tuple[dict[str, str], list[str]]:
    """Each client's reward model by now, and whose is another one than after the round in ``last``, or new since then.

    Nobody's is where ``last`` names none. Who was ``absent`` then is greeted, and new once it answers.
    """
    path = last / FINGERPRINTS
    before: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    back, _ = ask([client for client in clients if client.name in absent], RemoteClient.hello)
    now = before | {client.name: client.fingerprint for client in clients if client.fingerprint}
    return now, [name for name in now if name in back or (before and now[name] != before.get(name))]


def first_router(
    params: Params,
    rows: list[Prompt],
    images: list[Any],
    features: torch.Tensor,
    clients: list[RemoteClient],
    ledger: Ledger,
    folder: Path,
) -> Router:
    """The router of the first round: the one of the router stage, unless it has to learn from the base's answers first
    (online), or somebody's reward model is another one by now, or somebody was absent. Kept in ``folder / rounds / 0``, so
    that a resumed run goes on with the same.
    """
    done = folder / "rounds" / "0"
    if done.exists():
        ledger.restore(done / "ledger.json")
        return Router.load(done)
    router = Router.load(paths.ROUTER)
    ask(clients if router.kind in LEARNED else [], RemoteClient.hello)
    now, changed = fingerprints(clients, paths.ROUTER, router.absent)
    if router.kind == "online" or changed:
        router, _ = next_router(0, params, weigh(rows, images, router, features), router, features, clients, changed, None)
    fresh = folder / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    router.save(fresh)
    (fresh / FINGERPRINTS).write_text(json.dumps(now))
    ledger.save(fresh / "ledger.json")
    move_in(fresh, done)
    return router


def _log_round(run: StageRun, number: int, done: Path) -> list[dict[str, Any]]:
    """A child run of the round's curves; returns the curve's rows."""
    log = json.loads((done / "log.json").read_text())
    with run.child(f"align round {number}", {"round": number}) as child:
        for row in log["curve"]:
            child.metrics({k: v for k, v in row.items() if k not in ("round", "step")}, step=row["step"])
        child.metrics({f"refit.{name}": float(value) for name, value in log["refit"].items()})
        child.metrics({f"absent.{name}": float(n) for name, n in log["absent"].items()})
    for name, n in log["absent"].items():
        console.print(f"[yellow]client {name} did not answer[/] {n} times in round {number}", highlight=False)
    rows: list[dict[str, Any]] = log["curve"]
    return rows


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


@task
def align_policy() -> None:
    """All rounds; goes on from the last checkpoint of the last unfinished round."""
    params = load_params(paths.PARAMS)
    sections = {"seed": params.seed, "base": params.base, "router": params.router, "grpo": params.grpo}
    with stage_run("align", sections) as run:
        key = params.model_dump(include={"seed", "base", "clients", "router", "grpo"})
        folder = resumable("align", key, [paths.ROUTER, paths.REWARDS, paths.VALIDATED_PUBLIC])
        ledger, names = Ledger(), list(params.clients)
        clients = connect_clients(params, ledger)
        features = load_file(paths.ROUTER / "features.safetensors")["features"]
        rows, images = public_prompts()
        curves: list[dict[str, Any]] = []
        router = first_router(params, rows, images, features, clients, ledger, folder)
        prompts = weigh(rows, images, router, features)
        weights = _weights_by_category(prompts, 0, names)
        for number in range(1, params.grpo.rounds + 1):
            done = folder / "rounds" / str(number)
            if not done.exists():
                if saved := _saved_ledger(folder / f"trainer-{number}", folder / "rounds" / str(number - 1)):
                    ledger.restore(saved)
                one_round(number, params, prompts, router, features, clients, ledger, folder)
            router = Router.load(done)
            curves += _log_round(run, number, done)
            prompts = weigh(rows, images, router, features)
            weights += _weights_by_category(prompts, number, names)
        _publish(params, folder)
        _write_csv(paths.ROUNDS, curves)
        _write_csv(paths.ROUTER_WEIGHTS, weights)
        run.metrics({f"align.{name}": float(curves[-1][name]) for name in ("reward", "kl", "entropy") if name in curves[-1]})
        run.artifact(paths.ROUNDS)
        run.artifact(paths.ROUTER_WEIGHTS)
        run.artifact(paths.POLICY)


def _publish(params: Params, folder: Path) -> None:
    """The last round's adapter, every round's router and the ledger, moved into ``models/policy`` at once."""
    fresh, rounds = folder / "policy", folder / "rounds"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(rounds / str(params.grpo.rounds) / "adapter", fresh)
    shutil.copy(rounds / str(params.grpo.rounds) / "ledger.json", fresh / "ledger.json")
    for number in range(1, params.grpo.rounds + 1):
        target = fresh / "rounds" / str(number)
        target.mkdir(parents=True)
        for path in (rounds / str(number)).glob("router.*"):
            shutil.copy(path, target / path.name)
    move_in(fresh, paths.POLICY)
