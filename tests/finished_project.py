"""A small finished project: the benchmark's own data, and answers, curves and weights as a run might leave them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from mor.data.schema import Question, read_rows
from mor.evaluation.metrics import Evaluation, headline
from mor.fedvqa import write
from mor.fedvqa.annotator import KINDS

mpl.use("Agg")
STYLES = {"documents": "terse", "medical": "field", "scenes": "sentence"}
CLIENTS = list(STYLES)
SKILL = {  # suite: (right, right and preferred) of base and aligned
    "documents": ((0.81, 0.32), (0.84, 0.76)),
    "medical": ((0.97, 0.44), (0.98, 0.95)),
    "scenes": ((0.66, 0.38), (0.70, 0.58)),
    "held_out": ((0.60, 0.30), (0.62, 0.51)),
}


def replies(questions: Sequence[Question], right: float, preferred: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for question in questions:
        luck = rng.random()
        others = [text for text in question.accepted if not question.satisfies(text)]
        wrong = f"{question.answer[:-1]}7 7"
        text = question.answer if luck < preferred else others[0] if luck < right else wrong
        row = question.model_dump(include={"id", "image", "prompt", "answer", "category"})
        rows.append(row | {"text": text, "preferred": question.satisfies(text), "right": question.is_right(text)})
    return rows


def weights_of(suite: str, n: int, sharp: float, rng: np.random.Generator) -> list[list[float]]:
    home = [sharp * (client == suite or (suite == "held_out" and client != "medical")) for client in CLIENTS]
    logits = np.array(home) + rng.normal(0, 0.6, (n, len(CLIENTS)))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return [[float(share) for share in row] for row in shares]


def fake_evaluation(suites: dict[str, list[Question]], rng: np.random.Generator) -> dict[str, Any]:
    def hits(judge: str, domain: str, kind: str) -> list[bool]:
        home = {"correctness": 0.9, "style": 0.99, "malformed": 0.97, "tradeoff": 0.7}[kind]
        away = {"correctness": 0.5, "style": 0.03, "malformed": 0.6, "tradeoff": 0.35}[kind]
        return [bool(hit) for hit in rng.random(60) < (home if judge == domain else away)]

    return {
        "answers": {
            model: {suite: replies(rows, *SKILL[suite][i], rng) for suite, rows in suites.items()}
            for i, model in enumerate(("base", "aligned"))
        },
        "pairs": {j: {d: {kind: hits(j, d, kind) for kind in KINDS} for d in CLIENTS} for j in CLIENTS},
        "routing": {
            suite: {"categories": [row.category for row in rows], "weights": weights_of(suite, len(rows), 4.0, rng)}
            for suite, rows in suites.items()
        },
        "clients": CLIENTS,
        "wire": {client: {"up_bytes": 61_000 + 900 * i, "down_bytes": 1_240_000} for i, client in enumerate(CLIENTS)},
        "fedavg": {"lora_bytes": 1_900_000, "full_bytes": 15_600_000},
        "seconds": {"fedvqa": 21.3, "validate": 9.9, **{f"reward_{c}": 61.0 + 9 * i for i, c in enumerate(CLIENTS)}}
        | {"router": 14.2, "align": 231.0, "evaluate": 48.5},
        "settings": {"seed": 0, "router": "means", "mixture": "weighted", "grpo": {"beta": 0.04, "steps": 50}},
    }


def fake_rounds(rng: np.random.Generator, rounds: int = 3, steps: int = 50) -> list[dict[str, float]]:
    rows = []
    for i in range(rounds * steps):
        done = i / (rounds * steps)
        row = {"round": i // steps + 1, "step": i + 1, "reward": 0.9 * (1 - np.exp(-4 * done)) - 0.3 + rng.normal(0, 0.06)}
        row |= {"reward_std": 0.5 - 0.3 * done, "kl": 0.25 * (1 - np.exp(-3 * done)) + abs(rng.normal(0, 0.02))}
        row |= {"entropy": 0.9 - 0.6 * done + rng.normal(0, 0.04), "completion_length": 5 + rng.normal(0, 0.4)}
        row |= {f"score_{c}": 0.5 * done * (k + 1) + rng.normal(0, 0.15) for k, c in enumerate(CLIENTS)}
        row |= {f"weight_{c}": 1 / 3 + 0.05 * (k - 1) + rng.normal(0, 0.03) for k, c in enumerate(CLIENTS)}
        rows.append({name: float(value) for name, value in row.items()} | {"seconds": 1.4})
    return rows


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def fill(root: Path, pairs: int = 16, questions: int = 24) -> None:
    """Write the project's ``data/`` and ``reports/``."""
    rng = np.random.default_rng(7)
    data, reports = root / "data", root / "reports"
    answers = write.write_public(data / "public", STYLES, 2 * pairs, rng)
    for client in CLIENTS:
        (data / "clients" / client / "images").mkdir(parents=True)
        folder, key = data / "clients" / client, answers[client]
        write.write_client(
            folder, client, house=STYLES[client], pairs=pairs, error_rate=0.05, answers=key, taken=set(), rng=rng
        )
    (data / "eval" / "images").mkdir(parents=True)
    write.write_evaluation(data / "eval", STYLES, questions=questions, pairs=2, taken=set(), rng=rng)
    for folder in (data / "public", data / "eval", *(data / "clients" / client for client in CLIENTS)):
        (folder / write.MARKER).touch()
    reports.mkdir()
    suites = {suite: read_rows(data / "eval" / f"{suite}.jsonl", Question) for suite in [*CLIENTS, "held_out"]}
    raw = fake_evaluation(suites, rng)
    (reports / "evaluation.json").write_text(json.dumps(raw))
    metrics = headline(Evaluation.model_validate(raw), resamples=500, confidence=0.95, rng=rng)
    (reports / "metrics.json").write_text(json.dumps(metrics))
    write_csv(reports / "rounds.csv", fake_rounds(rng))
    table: list[dict[str, Any]] = []
    for number in range(4):
        for suite, rows in suites.items():
            for category in sorted({row.category for row in rows}):
                mean = np.mean(weights_of(suite, 20, 1.0 + number, rng), axis=0)
                row = {"round": number, "category": category}
                table += [row | {"client": c, "weight": float(w)} for c, w in zip(CLIENTS, mean, strict=True)]
    write_csv(reports / "router_weights.csv", table)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run, and the current one."""
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
