"""From the raw evaluation to the numbers of ``reports/metrics.json``.

``headline`` keeps to one set of names for people, DVC, MLflow and scripts::

    models.<base|aligned|gain>.<preference|accuracy>.<suite|mean|worst>   {value, low, high}, shares in [0, 1]
    reward_models.<judge>.pair_accuracy.<domain>.<kind>                   share of pairs ranked as the domain's annotator does
    reward_models.<judge>.calibration.<mean|deviation>                    of its scores on its own held-out pairs
    router.accuracy, router.entropy (nats), router.weights.<category>.<client>
    wire.<client>.<up|down>_bytes (payload)   wire.<client>.socket_<up|down>_bytes (over HTTPS alone)
    fedavg.<lora|full>_bytes   seconds.<stage>   settings.<name>

``mean`` and ``worst`` are over the clients' own suites: the held-out suite, and any other, stands apart.
``gain`` is aligned less base, paired by question; its ``worst`` compares the worst client of each, maybe two clients.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from mor.config import SUMMARIES
from mor.evaluation.statistics import Estimate, mean_of, resample, worst_of

Measure = Literal["preference", "accuracy"]
MEASURES: dict[Measure, str] = {"preference": "preferred", "accuracy": "right"}


class Record(BaseModel):
    """A part of the file: frozen, and deaf to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Judged(Record):
    """One model's greedy answer ``text`` to one question whose preferred answer is ``answer``."""

    id: str
    image: str
    prompt: str
    answer: str
    category: str
    text: str
    preferred: bool
    right: bool


class Routing(Record):
    """Router weights of a suite's prompts: ``weights`` is (N, K), rows in the suite's order, columns in the clients'."""

    categories: list[str]
    weights: list[list[float]]


class Wire(Record):
    """Bytes over the whole run, seen from the client: the messages' payload, and what sockets carried for it if any did."""

    up_bytes: int
    down_bytes: int
    socket_up_bytes: int | None = None
    socket_down_bytes: int | None = None


class FedAvg(Record):
    """What federated averaging of the same base over the same rounds would send: bytes a client in each direction."""

    lora_bytes: int
    full_bytes: int


class Evaluation(Record):
    """``reports/evaluation.json``: what was measured, before any statistics."""

    answers: dict[str, dict[str, list[Judged]]]  # model -> suite -> replies
    pairs: dict[str, dict[str, dict[str, list[bool]]]]  # judge -> domain -> kind -> ranked rightly
    routing: dict[str, Routing]  # suite -> weights
    clients: list[str]
    wire: dict[str, Wire]
    seconds: dict[str, float]
    settings: dict[str, Any]
    fedavg: FedAvg | None = None
    calibration: dict[str, dict[str, float]] = {}  # client -> mean and deviation of its scores on its own held-out pairs

    @field_validator("answers")
    @classmethod
    def _comparable(cls, answers: dict[str, dict[str, list[Judged]]]) -> dict[str, dict[str, list[Judged]]]:
        if clash := set(SUMMARIES) & {suite for suites in answers.values() for suite in suites}:
            raise ValueError(f"suites {sorted(clash)} bear the name of a summary: rename them")
        asked = {
            model: {suite: [r.id for r in replies] for suite, replies in suites.items()} for model, suites in answers.items()
        }
        if any(questions != next(iter(asked.values())) for questions in asked.values()):
            raise ValueError(f"models {sorted(asked)} must answer the same questions in the same order")
        return answers

    @property
    def suites(self) -> list[str]:
        """Suites that have questions: the clients' own in the clients' order, then the others."""
        present = [suite for suite, replies in next(iter(self.answers.values()), {}).items() if replies]
        return [c for c in self.clients if c in present] + [s for s in present if s not in self.clients]


def headline(evaluation: Evaluation, *, resamples: int, confidence: float, rng: np.random.Generator) -> dict[str, Any]:
    """The nested numbers of ``reports/metrics.json``; what was not measured is left out."""
    models: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for measure, flag in MEASURES.items():
        for model, estimates in _estimates(evaluation, flag, resamples, rng).items():
            models[model][measure] = {name: asdict(e.interval(confidence)) for name, e in estimates.items()}
    metrics = {
        "models": dict(models),
        "reward_models": {
            judge: {"pair_accuracy": _shares(domains)}
            | ({"calibration": evaluation.calibration[judge]} if judge in evaluation.calibration else {})
            for judge, domains in evaluation.pairs.items()
        },
        "router": router_metrics(evaluation.routing, evaluation.clients),
        "wire": {client: wire.model_dump(exclude_none=True) for client, wire in evaluation.wire.items()},
        "seconds": dict(evaluation.seconds),
        "settings": dict(evaluation.settings),
    }
    return metrics | ({"fedavg": evaluation.fedavg.model_dump()} if evaluation.fedavg else {})


def _estimates(evaluation: Evaluation, flag: str, resamples: int, rng: np.random.Generator) -> dict[str, dict[str, Estimate]]:
    """Model -> suite or summary -> estimate of the share of replies whose ``flag`` is set."""
    found: dict[str, dict[str, Estimate]] = {model: {} for model in evaluation.answers}
    for suite in evaluation.suites:
        samples = {m: [getattr(reply, flag) for reply in suites[suite]] for m, suites in evaluation.answers.items()}
        for model, estimate in resample(samples, resamples, rng).items():
            found[model][suite] = estimate
    for estimates in found.values():
        if own := [estimates[client] for client in evaluation.clients if client in estimates]:
            estimates |= {"mean": mean_of(own), "worst": worst_of(own)}
    if {"base", "aligned"} <= found.keys():
        found["gain"] = {name: found["aligned"][name] - found["base"][name] for name in found["base"]}
    return found


def _shares(domains: Mapping[str, Mapping[str, Sequence[bool]]]) -> dict[str, dict[str, float]]:
    return {d: {kind: float(np.mean(hits)) for kind, hits in kinds.items() if hits} for d, kinds in domains.items()}


def router_metrics(routing: Mapping[str, Routing], clients: Sequence[str]) -> dict[str, Any]:
    """Accuracy, entropy and mean weights of the router.

    ``accuracy``: share of prompts on the clients' own suites whose heaviest client is the suite's; a tie among m
    clients counts 1/m, so that a uniform router scores 1/K whatever the clients' order. ``entropy``: mean over all
    prompts of ``-sum_k w_k log w_k``, in nats (0: one client decides; log K: all count the same).
    """
    hits: list[float] = []
    by_category: dict[str, list[list[float]]] = defaultdict(list)
    for suite, routed in routing.items():
        for category, weights in zip(routed.categories, routed.weights, strict=True):
            by_category[category].append(weights)
            if suite in clients:
                top = max(weights)
                hits.append((weights[clients.index(suite)] == top) / weights.count(top))
    if not by_category:
        return {}
    weights_all = np.array([weights for rows in by_category.values() for weights in rows])  # (N, K)
    log_weights = np.log(weights_all, out=np.zeros_like(weights_all), where=weights_all > 0)  # 0 log 0 = 0
    means = {category: np.mean(rows, axis=0) for category, rows in by_category.items()}
    return ({"accuracy": float(np.mean(hits))} if hits else {}) | {
        "entropy": float(-(weights_all * log_weights).sum(axis=1).mean()) + 0.0,  # no negative zero
        "weights": {category: dict(zip(clients, map(float, mean), strict=True)) for category, mean in means.items()},
    }


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers by dotted name: ``{"a": {"b": 1}}`` -> ``{"a.b": 1.0}``; texts are left out.

    An interval gives its value under its own name, and its ends as ``<name>.low`` and ``<name>.high``.
    """
    flat: dict[str, float] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            inner = flatten(value, f"{name}.")
            if value.keys() == {"value", "low", "high"}:
                inner[name] = inner.pop(f"{name}.value")
            flat |= inner
        elif isinstance(value, int | float):
            flat[name] = float(value)
    return flat
