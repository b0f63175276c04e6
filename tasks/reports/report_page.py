"""The report of a run: figures of what the numbers allow, answers before and after, the data, the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from mor.config import HELD_OUT
from mor.evaluation.metrics import Evaluation, Judged
from tasks.reports import figures
from tasks.reports.html import render_page
from tasks.reports.plotting import NO_CLIENT, SUITE_TITLES, Drawing, client_colours, suite_order
from tasks.tracking.open_run import dotted

SCORES = (
    "Share of greedy answers that the client's annotator prefers (above) and that are right in any style (below): "
    "base in light, aligned in full colour. Bars carry percent; lines are bootstrap intervals over questions."
)
PAIR_ACCURACY = (
    "Share of held-out pairs that a client's reward model ranks as the domain's annotator does, by kind of pair. "
    "The diagonal is a client at home. Off it, brown cells are firm and wrong opinions, which the router must keep out."
)
ROUTING = "Mean router weight of each client by category of prompt. The router sees the prompt and never the answer."
LEARNING = (
    f"Training, step by step: faint as logged, solid the mean over {figures.SMOOTHING} steps; a vertical line "
    "begins a round. The router's weights are the mean over the step's prompts."
)
WIRE = (
    "The payload of every message that crossed a client's boundary in the run, images and the base model that clients "
    "read prompts with included, counted by the ledger; headers and TLS come on top where clients are elsewhere."
)
REFERENCES = " Dashed: what one direction of federated averaging of the same base would send in as many rounds."
TIME = "Wall-clock time of each stage when it last ran; a skipped stage keeps its time."


@dataclass(frozen=True)
class Sample:
    """One question with both models' replies and its image as PNG."""

    base: Judged
    aligned: Judged
    png: bytes


def report_drawings(
    metrics: Mapping[str, Any],
    rounds: Sequence[Mapping[str, float]],
    weights: Sequence[figures.RouterWeight],
    clients: Sequence[str],
) -> Iterator[Drawing]:
    """Every figure that has data: ``metrics`` is ``reports/metrics.json``, ``rounds`` and ``weights`` the rows of the CSVs."""
    models, judges = metrics["models"], metrics["reward_models"]
    if models.get("base", {}).get("preference"):
        yield Drawing("scores", "Base against aligned", SCORES, figures.score_bars(models, clients))
    if any(judge["pair_accuracy"] for judge in judges.values()):
        drawn = figures.pair_accuracy(judges, clients)
        yield Drawing("pair_accuracy", "Reward models at home and abroad", PAIR_ACCURACY, drawn)
    if weights:
        yield Drawing("routing", "Who is asked about what", ROUTING, figures.router_weights(weights, clients))
    if rounds:
        yield Drawing("learning", "GRPO", LEARNING, figures.learning_curves(rounds, clients))
    if metrics["wire"]:
        fedavg = metrics.get("fedavg", {})
        lines = {"LoRA FedAvg": fedavg.get("lora_bytes"), "full FedAvg": fedavg.get("full_bytes")}
        references = {name: number for name, number in lines.items() if number}
        drawn = figures.wire_bytes(metrics["wire"], clients, references)
        yield Drawing("wire", "Bytes on the wire", WIRE + REFERENCES * bool(references), drawn)
    if metrics["seconds"]:
        yield Drawing("seconds", "Time", TIME, figures.stage_times(metrics["seconds"], clients))


def pick_samples(evaluation: Evaluation, n: int) -> dict[str, list[tuple[Judged, Judged]]]:
    """Base and aligned replies to ``n`` questions a suite, evenly spaced through it: shown as they come, not chosen."""
    picked = {}
    for suite in evaluation.suites:
        both = list(zip(evaluation.answers["base"][suite], evaluation.answers["aligned"][suite], strict=True))
        count = min(n, len(both))
        picked[suite] = [both[i * len(both) // count] for i in range(count)]
    return picked


def render_report(
    metrics: Mapping[str, Any],
    drawings: Sequence[tuple[Drawing, bytes]],
    samples: Mapping[str, Sequence[Sample]],
    *,
    clients: Sequence[str],
    data_card: str,
    contact_sheet: bytes | None,
) -> str:
    """The page; ``drawings`` and ``contact_sheet`` come with their PNGs, ``data_card`` is Markdown."""
    return render_page(
        Path(__file__).with_name("report.html.j2"),
        models=metrics["models"],
        router=metrics["router"],
        seconds=metrics["seconds"],
        settings=dotted(metrics["settings"]),
        confidence=metrics["settings"].get("confidence"),
        drawings={drawing.name: (drawing, png) for drawing, png in drawings},
        samples=samples,
        clients=clients,
        suites=suite_order(metrics["models"].get("base", {}).get("preference", {}), clients),
        most_entropy=log(max(1, len(clients))),
        colours=client_colours(clients),
        no_client=NO_CLIENT,
        titles=SUITE_TITLES,
        held_out=HELD_OUT,
        data_card=data_card,
        contact_sheet=contact_sheet,
    )
