"""Evaluate base and aligned policy, the reward models and the router on held-out data."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from mor.config import HELD_OUT, Params
from mor.data.schema import Preference, Question, load_images, read_rows
from mor.evaluation.metrics import Evaluation, flatten, headline
from mor.federation.ledger import Ledger
from mor.rewards.kinds import load_reward_model
from mor.routing.router import Router
from mor.seeds import stream
from mor.vlm.load import Vlm
from mor.vlm.lora import load_policy
from tasks.project import paths
from tasks.project.decorators import task
from tasks.tracking.runs import stage_run


def read_suites(clients: Iterable[str]) -> dict[str, list[Question]]:
    """The clients' validated suites, in order, and the held-out one; those that exist."""
    files = {name: paths.validated_suite(name) for name in [*clients, HELD_OUT]}
    return {name: read_rows(file, Question) for name, file in files.items() if file.exists()}


def answer_suites(vlm: Vlm, suites: dict[str, list[Question]], most_tokens: int, name: str) -> dict[str, list[dict[str, Any]]]:
    """Greedy answers of at most ``most_tokens`` tokens to every suite, with the annotator's verdict on each."""
    answers = {}
    for suite, rows in track(suites.items(), description=f"answers of {name}"):
        texts = vlm.answer([row.prompt for row in rows], load_images(paths.EVAL, rows), most_tokens)
        answers[suite] = [
            row.model_dump(include={"id", "image", "prompt", "answer", "category"})
            | {"text": text, "preferred": row.satisfies(text), "right": row.is_right(text)}
            for row, text in zip(rows, texts, strict=True)
        ]
    return answers


def _pairs(
    clients: Collection[str], batch_size: int
) -> tuple[dict[str, dict[str, dict[str, list[bool]]]], dict[str, dict[str, float]]]:
    """Whether each client's reward model ranks each domain's held-out pairs rightly, by kind of pair; and its calibration.

    The latter is mean and deviation of its scores on its own domain's pairs; they would be 0 and 1 on what it was fitted on.
    """
    files = {name: paths.validated_pairs(name) for name in clients}
    held_out = {name: read_rows(file, Preference) for name, file in files.items() if file.exists()}
    table: dict[str, dict[str, dict[str, list[bool]]]] = {}
    calibration: dict[str, dict[str, float]] = {}
    for judge in track(clients, description="reward models on held-out pairs"):
        model = load_reward_model(paths.reward_folder(judge), batch_size)
        table[judge] = {}
        for domain, rows in held_out.items():
            images, prompts = load_images(paths.EVAL, rows), [row.prompt for row in rows]
            chosen = model.score(prompts, images, [row.chosen for row in rows])
            rejected = model.score(prompts, images, [row.rejected for row in rows])
            kinds: dict[str, list[bool]] = {}
            for row, better, worse in zip(rows, chosen, rejected, strict=True):
                rightly = better is not None and worse is not None and better > worse
                kinds.setdefault(row.kind or "all", []).append(rightly)
            table[judge][domain] = kinds
            if domain == judge and (known := [score for score in (*chosen, *rejected) if score is not None]):
                calibration[judge] = {"mean": float(np.mean(known)), "deviation": float(np.std(known))}
    return table, calibration


def _routing(base: Vlm, router: Router, suites: dict[str, list[Question]]) -> dict[str, dict[str, Any]]:
    routing = {}
    for suite, rows in suites.items():
        features = base.prompt_states([row.prompt for row in rows], load_images(paths.EVAL, rows))
        categories = [row.category for row in rows]
        routing[suite] = {"categories": categories, "weights": router.weights(features, categories).tolist()}
    return routing


def _wire(ledger: Ledger, client: str) -> dict[str, int]:
    """Payload, and what sockets carried for it where there were any."""
    payload = {f"{way}_bytes": ledger.total(client, way) for way in ("up", "down")}
    carried = {f"socket_{way}_bytes": ledger.total(client, way, "socket") for way in ("up", "down")}
    return payload | (carried if any(carried.values()) else {})


def _seconds() -> dict[str, float]:
    """Seconds of every stage before this one, as recorded when it last ran."""
    recorded = {path.stem: json.loads(path.read_text()).get("seconds") for path in sorted(paths.STAGES.glob("*.json"))}
    return {stage: s for stage, s in recorded.items() if s is not None and stage not in ("evaluate", "report")}


@task
def evaluate_models(params: Params) -> None:
    """Write ``reports/evaluation.json`` and ``reports/metrics.json``."""
    with stage_run("evaluate", {"seed": params.seed, "evaluation": params.evaluation}) as run:
        suites = read_suites(params.clients)
        for suite, rows in suites.items():
            run.dataset(f"eval.{suite}", paths.validated_suite(suite), len(rows), "evaluation")
        base = Vlm.load(params.base, params.evaluation.batch_size)
        aligned = load_policy(params.base, paths.POLICY, params.evaluation.batch_size)
        ledger = Ledger.load(paths.ROUTER / "ledger.json", paths.POLICY / "ledger.json")
        pairs, calibration = _pairs(list(params.clients), params.evaluation.batch_size)
        raw = {
            "clients": list(params.clients),
            "answers": {
                name: answer_suites(vlm, suites, params.grpo.max_completion_tokens, name)
                for name, vlm in (("base", base), ("aligned", aligned))
            },
            "pairs": pairs,
            "calibration": calibration,
            "routing": _routing(base, Router.load(paths.round_folder(params.grpo.rounds)), suites),
            "wire": {name: _wire(ledger, name) for name in params.clients},
            "fedavg": {  # what averaging weights over the same rounds would send, one way
                "lora_bytes": params.grpo.rounds * (paths.POLICY / "adapter_model.safetensors").stat().st_size,
                "full_bytes": params.grpo.rounds * base.model.get_memory_footprint(),
            },
            "seconds": _seconds(),
            "settings": {
                "seed": params.seed,
                "router": params.router.kind,
                "mixture": params.grpo.mixture,
                "rewards": params.rewards.kind,
                "top_k": params.router.top_k,
                **(params.boundary.model_dump(include={"epsilon", "delta"}) if params.router.kind == "means" else {}),
                "confidence": params.evaluation.confidence,
            },
        }
        _write(paths.EVALUATION, raw)
        metrics = headline(
            Evaluation.model_validate(raw),
            resamples=params.evaluation.resamples,
            confidence=params.evaluation.confidence,
            rng=stream(params.seed, "bootstrap"),
        )
        _write(paths.METRICS, metrics)
        run.metrics(flatten(metrics))
        run.headline(flatten(metrics))
        run.artifact(paths.EVALUATION)
        run.artifact(paths.METRICS)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
