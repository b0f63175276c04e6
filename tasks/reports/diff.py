"""The difference of two runs that MLflow holds, on the terminal and as ``reports/diff.html``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from rich.console import Console

from mor.config import load_params
from mor.evaluation.metrics import Evaluation
from mor.files import write_whole
from mor.seeds import stream
from tasks.project import paths
from tasks.reports.diff_console import print_difference
from tasks.reports.diff_page import forest_plot, render_diff
from tasks.reports.difference import ComparedRun, RunDifference, compare_results, pick_answers
from tasks.reports.find_runs import began, find_run, last_two
from tasks.reports.images import figure_png, thumbnail
from tasks.tracking import runs as tracking
from tasks.tracking import store

if TYPE_CHECKING:
    from mlflow.entities import Run


def compare_runs(a: str | None = None, b: str | None = None) -> None:
    """Print how run ``b`` differs from ``a`` and write the page; each is a night, a run's id or its beginning, or its name.

    Without names: the last two nights, or the last two executions of the pipeline where there are fewer nights.
    """
    params = load_params(paths.PARAMS)
    runs = [find_run(a), find_run(b)] if a and b else last_two(a or b)
    both = [read_run(run) for run in runs]
    asked, rng = params.evaluation, stream(params.seed, "diff")
    difference = compare_results(*both, resamples=asked.resamples, confidence=asked.confidence, rng=rng)
    print_difference(difference, asked.confidence)
    write_diff(difference, runs, samples=asked.samples, confidence=asked.confidence)
    Console().print(f"\n[bold]{paths.DIFF_REPORT}[/]  the same with pictures and more answers")


def read_run(run: Run) -> ComparedRun:
    """What MLflow holds of an execution; without answers where it ended before they were kept."""
    with TemporaryDirectory() as folder:
        results = store.fetch_results(run.info.run_id, Path(folder))
        answers = results / paths.EVALUATION.name
        evaluation = Evaluation.model_validate_json(answers.read_bytes()) if answers.exists() else None
    tags, params = run.data.tags, run.data.params
    commit = tags.get("mlflow.source.git.commit", "unknown")[:10]
    facts = {
        "run": run.info.run_id[:8],
        "began (UTC)": began(run),
        "night ended": tags.get("mor.ended", ""),
        "commit": commit + (" and uncommitted changes" if tags.get("mor.dirty") == "true" else ""),
        "dvc.lock": tags.get("mor.dvc_lock", ""),
    }
    name = str(run.info.run_name)
    settings = {title: None if value == "None" else value for title, value in params.items()}
    return ComparedRun(
        name=name if "mor.night" in tags else f"{name} ({run.info.run_id[:8]})",
        facts={title: text for title, text in facts.items() if text},
        params=tracking.with_effect({name: value for name, value in settings.items() if not name.startswith("data.")}),
        versions={name.removeprefix("data."): value for name, value in params.items() if name.startswith("data.")},
        metrics=run.data.metrics,
        evaluation=evaluation,
    )


def read_images(difference: RunDifference, samples: int) -> dict[str, bytes]:
    """The images of the answers to show, as PNG; none where this folder's evaluation data is of another version."""
    here = tracking.data_versions(tracking.read_lock(), []).get("eval")
    if here != difference.b.versions.get("eval"):
        return {}
    names = {answer.after.image for answers in difference.answers.values() for answer in pick_answers(answers, samples)}
    return {name: thumbnail(paths.EVAL / name) for name in sorted(names) if (paths.EVAL / name).exists()}


def write_diff(difference: RunDifference, runs: Sequence[Run], *, samples: int, confidence: float) -> None:
    """Write ``reports/diff.html``, whole or not at all."""
    page = render_diff(
        difference,
        figure_png(forest_plot(difference.scores, difference.clients)) if difference.scores else None,
        read_images(difference, samples),
        samples=samples,
        confidence=confidence,
        links=_links(runs),
    )
    write_whole(paths.DIFF_REPORT, page)


def _links(runs: Sequence[Run]) -> dict[str, str]:
    """Pages of MLflow's user interface: both runs side by side, and each with its stages."""
    ids, experiments = ([getattr(run.info, name) for run in runs] for name in ("run_id", "experiment_id"))
    query = f"runs={quote(json.dumps(ids))}&experiments={quote(json.dumps(sorted(set(experiments))))}"
    single = {f"{name} in MLflow": store.run_address(run) for name, run in zip("AB", runs, strict=True)}
    return {"A and B side by side in MLflow": f"{store.interface()}/#/compare-runs?{query}"} | single
