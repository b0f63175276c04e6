"""The difference of two runs that MLflow holds, on the terminal and as ``reports/diff.html``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from rich.console import Console

from mor.config import load_params
from mor.errors import UserError
from mor.evaluation.metrics import Evaluation
from mor.files import write_whole
from mor.seeds import stream
from tasks.project import paths
from tasks.reports.diff_console import print_difference
from tasks.reports.diff_page import forest_plot, render_diff
from tasks.reports.difference import ComparedRun, RunDifference, compare_results, pick_answers
from tasks.reports.images import figure_png, thumbnail
from tasks.tracking import runs as tracking
from tasks.tracking import store

if TYPE_CHECKING:
    from mlflow.entities import Run

LISTED = 8  # runs that a message names
PREFIX = 4  # letters of a run's id, at least, that stand for it


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
    picture = figure_png(forest_plot(difference.scores, difference.clients)) if difference.scores else None
    images, links = read_images(difference, asked.samples), _links(runs)
    page = render_diff(difference, picture, images, samples=asked.samples, confidence=asked.confidence, links=links)
    write_whole(paths.DIFF_REPORT, page)
    Console().print(f"\n[bold]{paths.DIFF_REPORT}[/]  the same with pictures and more answers")


# --- the runs that are meant -------------------------------------------------------------------------------------------


def find_run(name: str) -> Run:
    """The execution that ``name`` means; raises ``UserError`` where none or several fit."""
    runs = executions()
    nights = [run for run in runs if run.data.tags.get("mor.night") == name.removeprefix("night ").removeprefix("night/")]
    if nights:
        return nights[0]  # the newest
    if found := _parent_of(name):
        return found
    starting = [run for run in runs if len(name) >= PREFIX and run.info.run_id.startswith(name)]
    fitting = starting or [run for run in runs if run.info.run_name == name]
    if len(fitting) == 1:
        return fitting[0]
    several = f"{len(fitting)} runs fit {name!r}; name one by its id"
    said = several if fitting else f"no run {name!r}: give a night, an id or a name"
    lines = [f"  {run.info.run_id[:8]}  {began(run)}  {run.info.run_name}" for run in (fitting or runs)[: LISTED + 1]]
    listed = "\n".join([*lines[:LISTED], *["  ..."] * (len(lines) > LISTED)]) or "  none; mor run makes one"
    raise UserError(f"{said}. There are:\n{listed}")


def last_two(second: str | None = None) -> tuple[Run, Run]:
    """The last two executions that ended well, older first, nights if there are two; or ``second`` and the one before it."""
    ended = [run for run in executions() if run.info.status == "FINISHED"]
    nights = [run for run in ended if "mor.night" in run.data.tags]
    runs = nights if len(nights) > 1 else ended
    if second:
        later = find_run(second)
        runs = [later, *(run for run in runs if run.info.start_time < later.info.start_time)]
    if len(runs) > 1:
        return runs[1], runs[0]
    raise UserError(f"two finished runs are needed for a diff, and there are {len(runs)}: run the pipeline again (mor run)")


def executions() -> list[Run]:
    """Every execution of the pipeline, newest first."""
    return store.search_runs("tags.`mor.execution` != ''")


def _parent_of(run_id: str) -> Run | None:
    """The run with that whole id, or the execution that it is a stage of."""
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        return None
    found = store.search_runs(f"attributes.run_id = '{run_id}'")
    parent = found[0].data.tags.get("mlflow.parentRunId") if found else None
    return _parent_of(parent) if parent else (found[0] if found else None)


def began(run: Run) -> str:
    """When it did, in UTC."""
    return f"{datetime.fromtimestamp(run.info.start_time / 1000, UTC):%Y-%m-%d %H:%M}"


# --- what is read of them, and written ------------------------------------------------------------------------------------


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
    settings = {title: value for title, value in params.items() if value != "None" and not title.startswith("data.")}
    return ComparedRun(
        name=name if "mor.night" in tags else f"{name} ({run.info.run_id[:8]})",
        facts={title: text for title, text in facts.items() if text},
        params=tracking.with_effect(settings),
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


def _links(runs: Sequence[Run]) -> dict[str, str]:
    """Pages of MLflow's user interface: both runs side by side, and each with its stages."""
    ids, experiments = ([getattr(run.info, name) for run in runs] for name in ("run_id", "experiment_id"))
    query = f"runs={quote(json.dumps(ids))}&experiments={quote(json.dumps(sorted(set(experiments))))}"
    single = {f"{name} in MLflow": store.run_address(run) for name, run in zip("AB", runs, strict=True)}
    return {"A and B side by side in MLflow": f"{store.interface()}/#/compare-runs?{query}"} | single
