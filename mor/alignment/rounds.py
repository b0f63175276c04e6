"""MoR, a round after the other: GRPO on the clients' routed scores, then the router's refit on fresh answers.

    for done in align(base, clients, prompts, settings, folder=folder):
        print(done.number, done.metrics)

Everything of round n lies in ``folder / rounds / n``, moved in at once: the policy's ``adapter``, the router after the round
and the reward models that it knows, the ledger and the curves. Round 0 is before any training. What is there is not done
again, and a training goes on from its last checkpoint; give a folder again only with the same arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mor.alignment.grpo import train_round
from mor.alignment.mixed_reward import MixedReward
from mor.alignment.mixtures import MIXTURES
from mor.alignment.refit import Refit, next_router
from mor.data.public import PublicPrompt
from mor.federation.ledger import Ledger
from mor.federation.local import LocalClient
from mor.federation.quorum import ask
from mor.federation.remote import RemoteClient
from mor.federation.server import Server, Settings, prompt_features
from mor.files import fresh_folder
from mor.routing.fit import fingerprints, first_router, fit_and_control, save_router
from mor.routing.router import LEARNED, Router
from mor.seeds import integer
from mor.vlm.load import Vlm
from mor.vlm.lora import load_policy
from mor.vlm.progress import last_checkpoint

CURVES = {  # TRL's own "reward" is left out: it averages to 0 wherever groups are standardised
    "mixed_score": "reward",
    "reward_std": "reward_std",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "step_time": "seconds",
}


@dataclass(frozen=True)
class Round:
    """A round that is done.

    ``curve`` has a row per step with fresh completions; ``absent`` counts how often a client did not answer; ``trained_with``
    is the router whose weights the training used, ``router`` the one after the refit.
    """

    number: int  # from 1
    folder: Path
    server: Server
    trained_with: Router
    router: Router
    refit: Refit
    curve: list[dict[str, Any]] = field(default_factory=list)
    absent: dict[str, int] = field(default_factory=dict)

    @property
    def adapter(self) -> Path:
        """The policy as a PEFT folder."""
        return self.folder / "adapter"

    @property
    def metrics(self) -> dict[str, float]:
        """Reward, KL divergence and entropy at the round's end, and what the refit rests on."""
        last = self.curve[-1] if self.curve else {}
        curve = {name: float(last[name]) for name in ("reward", "kl", "entropy") if name in last}
        return curve | {f"refit.{name}": float(value) for name, value in vars(self.refit).items()}

    def policy(self) -> Vlm:
        """The base with this round's adapter merged in."""
        return load_policy(self.server.base, self.adapter, self.server.settings.batch_size)


def align(
    base: str,
    clients: Sequence[LocalClient],
    prompts: Sequence[PublicPrompt],
    settings: Settings | None = None,
    *,
    folder: Path,
) -> Iterator[Round]:
    """Align ``base`` (a model folder or ``org/name@revision``) with the clients' rewards on public ``prompts``.

    Yields every round when it is done. Raises ``QuorumError`` where too few clients answer: call it again when they are back.
    """
    settings, ledger = settings or Settings(), Ledger()
    model = Vlm.load(base, settings.batch_size)
    remotes = [client.connect(model, ledger) for client in clients]
    server = Server(base, remotes, prompts, prompt_features(model, prompts), settings, ledger)
    yield from run_rounds(server, folder)


def run_rounds(server: Server, folder: Path, *, fitted: Path | None = None, anew: bool = False) -> Iterator[Round]:
    """The same with clients that are connected already.

    ``fitted`` is the folder of a router that was fitted before, with its ``fingerprints.json``; without one the first router
    is fitted here. With ``anew`` the clients fit the router afresh before every round.
    """
    settings = server.settings
    router = _router_of_round_0(server, folder / "rounds" / "0", fitted)
    for number in range(1, settings.grpo.rounds + 1):
        done, last = (folder / "rounds" / str(n) for n in (number, number - 1))
        trainer = folder / f"trainer-{number}"
        if not done.exists():
            server.ledger.restore(last / "ledger.json")
        if anew and number > 1:
            router, _ = fit_and_control(server, server.load_base())
        if not done.exists():
            if checkpoint := last_checkpoint(trainer):  # a resumed run counts what an uninterrupted one counts
                server.ledger.restore(_ledger_of(trainer, Path(checkpoint).name))
            _one_round(number, server, router, last, trainer, done)
        server.ledger.restore(done / "ledger.json")
        log = json.loads((done / "log.json").read_text())
        after = Router.load(done)
        yield Round(number, done, server, router, after, Refit(**log["refit"]), log["curve"], log["absent"])
        router = after


def weigh(server: Server, router: Router) -> dict[str, PublicPrompt]:
    """The public prompts with the router's weights, by id."""
    prompts = server.prompts
    weights = router.weights(server.features, [prompt.category for prompt in prompts]).double().numpy()
    return {prompt.id: replace(prompt, weights=row) for prompt, row in zip(prompts, weights, strict=True)}


def _router_of_round_0(server: Server, done: Path, fitted: Path | None) -> Router:
    """The router of the first round: the one ``fitted`` before, unless it has to learn from the base's answers first
    (online), or somebody's reward model is another one by now, or somebody was absent.

    Kept in ``done``, so that a resumed run goes on with the same.
    """
    if done.exists():
        server.ledger.restore(done / "ledger.json")
        return Router.load(done)
    changed: list[str] = []
    if fitted is None:
        router, _ = first_router(server, server.load_base())
        now, _ = fingerprints(server.clients, done, [])
    else:
        router = Router.load(fitted)
        ask(server.clients if router.kind in LEARNED else [], RemoteClient.hello)
        now, changed = fingerprints(server.clients, fitted, router.absent)
    if router.kind == "online" or changed:
        router, _ = next_router(0, server, router, changed, None)
    with fresh_folder(done) as fresh:
        save_router(router, now, fresh)
        server.ledger.save(fresh / "ledger.json")
    return router


def _one_round(number: int, server: Server, router: Router, last: Path, trainer: Path, done: Path) -> None:
    """Train, refit and leave everything of the round in ``done``."""
    settings, grpo = server.settings, server.settings.grpo
    reward = MixedReward(
        server.clients, weigh(server, router), grpo.generations, grpo.calibration, settings.router.top_k,
        settings.router.least_weight, grpo.quorum, grpo.coverage, MIXTURES[grpo.mixture],
    )  # fmt: skip
    model, log = train_round(
        server.base,
        reward,
        grpo,
        seed=integer(settings.seed, "align", number),
        adapter=last / "adapter" if number > 1 else None,
        checkpoints=trainer,
        callbacks=[KeepLedger(server.ledger)],
    )
    with fresh_folder(done) as fresh:
        model.save_pretrained(str(fresh / "adapter"))
        now, changed = fingerprints(server.clients, last, router.absent)
        router, refit = next_router(number, server, router, changed, fresh / "adapter")
        save_router(router, now, fresh)
        server.ledger.save(fresh / "ledger.json")
        log_of = {"curve": _curve(log, number, grpo.steps), "absent": reward.absent, "refit": vars(refit)}
        (fresh / "log.json").write_text(json.dumps(log_of))


class KeepLedger(TrainerCallback):
    """Save the byte ledger before every checkpoint, so that a resumed run counts what an uninterrupted one counts."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_save:
            self.ledger.save(_ledger_of(Path(args.output_dir), f"checkpoint-{state.global_step}"))


def _ledger_of(trainer: Path, checkpoint: str) -> Path:
    return trainer / f"{checkpoint.replace('checkpoint', 'ledger')}.json"


def _curve(log: list[dict[str, float]], number: int, steps: int) -> list[dict[str, Any]]:
    """TRL's log in our names, steps counted over all rounds."""
    rows = []
    for entry in log:
        row: dict[str, Any] = {"round": number, "step": (number - 1) * steps + int(entry["step"])}
        row |= {name: entry[key] for key, name in CURVES.items() if key in entry}
        row |= {key.replace("/", "_"): v for key, v in entry.items() if key.startswith(("score/", "weight/"))}
        rows.append(row)
    return rows
