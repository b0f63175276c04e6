"""The report: one HTML page that opens anywhere, offline, with every image inside it.

``figures`` draws what the numbers allow, ``pick_samples`` chooses answers to show, ``render`` puts the page together.
All text from data is escaped, and the page's own policy forbids it to load anything.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from matplotlib.figure import Figure

from mor.evaluation.metrics import HELD_OUT, Evaluation, Reply
from mor.text import visible
from tasks.reports import figures as plots


@dataclass(frozen=True)
class Drawing:
    """A figure with its words; ``name`` is a file name without its ending."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Sample:
    """One question with both models' replies and its image as PNG."""

    base: Reply
    aligned: Reply
    png: bytes


def figures(
    metrics: Mapping[str, Any],
    rounds: Sequence[Mapping[str, float]],
    weights: Sequence[plots.RouterWeight],
    clients: Sequence[str],
) -> Iterator[Drawing]:
    """Every figure that has data: ``metrics`` is ``reports/metrics.json``, ``rounds`` and ``weights`` the rows of the CSVs."""
    if metrics["models"].get("base", {}).get("preference"):
        caption = (
            "Share of greedy answers that the client's annotator prefers (above) and that are right in any style (below): "
            "base in light, aligned in full colour. Bars carry percent; lines are bootstrap intervals over questions."
        )
        yield Drawing("scores", "Base against aligned", caption, plots.scores(metrics["models"], clients))
    if any(judge["pair_accuracy"] for judge in metrics["reward_models"].values()):
        caption = (
            "Share of held-out pairs that a client's reward model ranks as the domain's annotator does, by kind of pair. "
            "The diagonal is a client at home. Off it, brown cells are firm and wrong opinions, which the router must keep out."
        )
        drawn = plots.pair_accuracy(metrics["reward_models"], clients)
        yield Drawing("pair_accuracy", "Reward models at home and abroad", caption, drawn)
    if weights:
        caption = "Mean router weight of each client by category of prompt. The router sees the prompt and never the answer."
        yield Drawing("routing", "Who is asked about what", caption, plots.routing(weights, clients))
    if rounds:
        caption = (
            f"Training, step by step: faint as logged, solid the mean over {plots.SMOOTHING} steps; a vertical line "
            "begins a round. The router's weights are the mean over the step's prompts."
        )
        yield Drawing("learning", "GRPO", caption, plots.learning_curves(rounds, clients))
    if metrics["wire"]:
        fedavg = metrics.get("fedavg", {})
        lines = {"LoRA FedAvg": fedavg.get("lora_bytes"), "full FedAvg": fedavg.get("full_bytes")}
        references = {name: number for name, number in lines.items() if number}
        caption = (
            "The payload of every message that crossed a client's boundary in the run, images and the base model that clients "
            "read prompts with included, counted by the ledger; headers and TLS come on top where clients are elsewhere."
        ) + (
            " Dashed: what one direction of federated averaging of the same base would send in as many rounds."
            if references
            else ""
        )
        yield Drawing("wire", "Bytes on the wire", caption, plots.wire(metrics["wire"], clients, references))
    if metrics["seconds"]:
        caption = "Wall-clock time of each stage when it last ran; a skipped stage keeps its time."
        yield Drawing("seconds", "Time", caption, plots.seconds(metrics["seconds"], clients))


def pick_samples(evaluation: Evaluation, n: int) -> dict[str, list[tuple[Reply, Reply]]]:
    """Base and aligned replies to ``n`` questions a suite, evenly spaced through it: shown as they come, not chosen."""
    picked = {}
    for suite in evaluation.suites:
        both = list(zip(evaluation.answers["base"][suite], evaluation.answers["aligned"][suite], strict=True))
        count = min(n, len(both))
        picked[suite] = [both[i * len(both) // count] for i in range(count)]
    return picked


def render(
    metrics: Mapping[str, Any],
    drawings: Sequence[tuple[Drawing, bytes]],
    samples: Mapping[str, Sequence[Sample]],
    *,
    clients: Sequence[str],
    data_card: str,
    contact_sheet: bytes | None,
) -> str:
    """The page; ``drawings`` and ``contact_sheet`` come with their PNGs, ``data_card`` is Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "inline": lambda png: Markup("data:image/png;base64,") + b64encode(png).decode(),
        "markdown": markdown,
        "words": lambda name: str(name).replace("_", " "),
        "bytes": plots.in_bytes,
        "time": plots.in_time,
        "points": points,
    }
    environment.filters |= filters
    return environment.get_template("report.html.j2").render(
        models=metrics["models"],
        router=metrics["router"],
        wire=metrics["wire"],
        seconds=metrics["seconds"],
        settings=_dotted(metrics["settings"]),
        confidence=metrics["settings"].get("confidence"),
        drawings={drawing.name: (drawing, png) for drawing, png in drawings},
        samples=samples,
        clients=clients,
        suites=plots.suite_order(metrics["models"].get("base", {}).get("preference", {}), clients),
        most_entropy=log(max(1, len(clients))),
        colours=plots.client_colours(clients),
        held_out=HELD_OUT,
        data_card=data_card,
        contact_sheet=contact_sheet,
    )


def markdown(text: str) -> Markup:
    """HTML from Markdown that may hold anything: raw HTML is escaped, no image is loaded, headings move down."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # markdown-it escapes what is not markup


def points(share: float) -> str:
    """A difference of shares in percentage points: ``-0.031`` -> ``−3``."""
    return f"{round(100 * share):+d}".replace("-", "−") if round(100 * share) else "0"


def _dotted(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
