"""The difference of two runs that MLflow holds, on the terminal and as ``reports/diff.html``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import quote

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mor.config import Params, UserError, load_params
from mor.evaluation.metrics import Evaluation
from mor.files import write_whole
from mor.seeds import stream
from mor.text import printable
from tasks.project import paths
from tasks.reports.diff_page import (
    TITLES,
    Change,
    Difference,
    Gap,
    Side,
    compare,
    forest,
    pick,
    render_difference,
    shown,
    telling,
)
from tasks.reports.page import points
from tasks.stages.report import png_bytes, thumbnail
from tasks.tracking import runs as tracking
from tasks.tracking import store

if TYPE_CHECKING:
    from mlflow.entities import Run

WIDTH = 110  # columns that the widest table needs
LISTED = 8  # runs that a message names
PREFIX = 4  # letters of a run's id, at least, that stand for it
ANSWERS = 2  # a suite, on the terminal; the page shows as many as the report
NUMBERS = 16  # lines of other figures on the terminal
TURNS = {"better": "[green]better[/]", "worse": "[red]worse[/]", "reworded": "[dim]other words[/]"}


def compare_runs(a: str | None = None, b: str | None = None) -> None:
    """Print how run ``b`` differs from ``a`` and write the page; each is a night, a run's id or its beginning, or its name.

    Without names: the last two nights, or the last two executions of the pipeline where there are fewer nights.
    """
    params = load_params(paths.PARAMS)
    runs = [find_run(a), find_run(b)] if a and b else last_two(a or b)
    sides = [read_side(run) for run in runs]
    evaluation = params.evaluation
    difference = compare(
        *sides,
        resamples=evaluation.resamples,
        confidence=evaluation.confidence,
        rng=stream(params.seed, "diff"),
    )
    show(difference, evaluation.confidence)
    write_page(difference, params, runs)
    Console().print(f"\n[bold]{paths.DIFF_REPORT}[/]  the same with pictures and more answers")


# --- finding runs ------------------------------------------------------------------------------------------------------


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
    said = (
        f"{len(fitting)} runs fit {name!r}; name one by its id"
        if fitting
        else f"no run {name!r}: give a night, an id or a name"
    )
    raise UserError(f"{said}. There are:\n{_listed(fitting or runs)}")


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
    raise UserError(f"two finished runs are needed to compare, and there are {len(runs)}: run the pipeline again (mor run)")


def executions() -> list[Run]:
    """Every execution of the pipeline, newest first."""
    found = store.search_runs("tags.`mor.execution` != ''")
    return sorted(found, key=lambda run: int(run.info.start_time), reverse=True)


def _parent_of(run_id: str) -> Run | None:
    """The run with that whole id, or the execution that it is a stage of."""
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        return None
    found = store.search_runs(f"attributes.run_id = '{run_id}'")
    parent = found[0].data.tags.get("mlflow.parentRunId") if found else None
    return _parent_of(parent) if parent else (found[0] if found else None)


def _listed(runs: Sequence[Run]) -> str:
    lines = [f"  {run.info.run_id[:8]}  {_when(run)}  {run.info.run_name}" for run in runs[:LISTED]]
    return "\n".join(lines + ["  ..."] * (len(runs) > LISTED)) or "  none; mor run makes one"


def _when(run: Run) -> str:
    return f"{datetime.fromtimestamp(run.info.start_time / 1000, UTC):%Y-%m-%d %H:%M}"


# --- reading them ------------------------------------------------------------------------------------------------------


def read_side(run: Run) -> Side:
    """What MLflow holds of an execution; without answers where it ended before they were kept."""
    with TemporaryDirectory() as folder:
        results = store.fetch_results(run.info.run_id, Path(folder))
        answers = results / paths.EVALUATION.name
        evaluation = Evaluation.model_validate_json(answers.read_bytes()) if answers.exists() else None
    tags, params = run.data.tags, run.data.params
    commit = tags.get("mlflow.source.git.commit", "unknown")[:10]
    facts = {
        "run": run.info.run_id[:8],
        "began (UTC)": _when(run),
        "night ended": tags.get("mor.ended", ""),
        "commit": commit + (" and uncommitted changes" if tags.get("mor.dirty") == "true" else ""),
        "dvc.lock": tags.get("mor.dvc_lock", ""),
    }
    name = str(run.info.run_name)
    return Side(
        name=name if "mor.night" in tags else f"{name} ({run.info.run_id[:8]})",
        facts={title: text for title, text in facts.items() if text},
        params=tracking.with_effect(
            {name: None if value == "None" else value for name, value in params.items() if not _data(name)}
        ),
        versions={name.removeprefix("data."): value for name, value in params.items() if _data(name)},
        metrics=run.data.metrics,
        evaluation=evaluation,
    )


def _data(param: str) -> bool:
    return param.startswith("data.")


def read_images(difference: Difference, samples: int) -> dict[str, bytes]:
    """The images of the answers to show, as PNG; none where this folder's evaluation data is of another version."""
    here = tracking.data_versions(tracking.read_lock(), []).get("eval")
    if here != difference.b.versions.get("eval"):
        return {}
    names = {answer.after.image for answers in difference.answers.values() for answer in pick(answers, samples)}
    return {name: thumbnail(paths.EVAL / name) for name in sorted(names) if (paths.EVAL / name).exists()}


# --- showing them ------------------------------------------------------------------------------------------------------


def show(difference: Difference, confidence: float, console: Console | None = None) -> None:
    """Print the difference: what was changed, what that did to the scores, and some answers."""
    console = console or Console()
    console.width = max(console.width, WIDTH)
    console.print(f"[bold]A[/]  {escape(printable(difference.a.name))}\n[bold]B[/]  {escape(printable(difference.b.name))}")
    _show_changes(console, "Settings", difference.params, "no setting that a result depends on differs")
    _show_changes(console, "Data", difference.versions, "the same")
    if difference.gaps:
        console.print(_scores(difference.gaps, confidence))
    else:
        console.print("\n[bold]Scores[/]  not comparable: a run has kept no answers (reports/evaluation.json)")
    numbers = [change for change in difference.numbers if telling(change)]
    if numbers:
        console.print(_numbers(numbers[:NUMBERS]))
    if left := len(difference.numbers) - len(numbers[:NUMBERS]):
        console.print(f"[dim]and {left} other figures, in {paths.DIFF_REPORT}[/]")
    _show_answers(console, difference)


def _show_changes(console: Console, title: str, changes: Sequence[Change], same: str) -> None:
    if not changes:
        console.print(f"\n[bold]{title}[/]  {same}")
        return
    table = _table(title, ("", "A", "B"))
    for change in changes:
        table.add_row(change.name, _text(change.before), f"[bold]{_text(change.after)}[/]")
    console.print(table)


def _text(value: object) -> str:
    return "[dim]not set[/]" if value is None else escape(printable(value))


def _scores(gaps: Iterable[Gap], confidence: float) -> Table:
    """One row a suite; shares in percent, differences in points with their intervals."""
    table = _table(f"Scores, with {100 * confidence:g} % intervals of B less A", ("",))
    for measure in ("preference", "accuracy"):
        for heading in (f"{measure}\nA", "\nB", "\nB less A"):
            table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("paired\nquestions", justify="right")
    rows: dict[str, list[Gap]] = {}
    for gap in gaps:
        rows.setdefault(gap.suite, []).append(gap)
    for suite, measures in rows.items():
        cells = [cell for gap in measures for cell in (f"{100 * gap.before:.1f}", f"{100 * gap.after:.1f}", _gain(gap))]
        table.add_row(TITLES.get(suite, suite).replace("_", " "), *cells, str(measures[0].paired or "none"))
    return table


def _gain(gap: Gap) -> str:
    difference = gap.difference
    tone = "green" if difference.low > 0 else "red" if difference.high < 0 else "dim"
    return f"[{tone}]{points(difference.value)}[/] [dim]({points(difference.low)} to {points(difference.high)})[/]"


def _numbers(changes: Sequence[Change]) -> Table:
    table = _table("Other figures that differ", ("",))
    for heading in ("A", "B"):
        table.add_column(heading, justify="right")
    for change in changes:
        table.add_row(change.name, shown(change.name, change.before), shown(change.name, change.after))
    return table


def _show_answers(console: Console, difference: Difference) -> None:
    if not difference.asked:
        return
    counts = _table("Answers that changed", ("",))
    for heading in ("questions of both", "better", "worse", "other words"):
        counts.add_column(heading, justify="right")
    for suite, asked in difference.asked.items():
        turns = difference.turns(suite)
        counts.add_row(suite.replace("_", " "), str(asked), *(str(turns[turn]) for turn in ("better", "worse", "reworded")))
    console.print(counts)
    examples = _table("", ("suite", "question", "preferred", "A", "B", ""))
    for suite, answers in difference.answers.items():
        for answer in pick(answers, ANSWERS):
            before, after = answer.before, answer.after
            texts = (escape(printable(text) or "(nothing)") for text in (after.prompt, after.answer, before.text, after.text))
            examples.add_row(suite.replace("_", " "), *texts, TURNS[answer.turn])
    if examples.row_count:
        console.print(examples)


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def write_page(difference: Difference, params: Params, runs: Sequence[Run]) -> None:
    """Write ``reports/diff.html``, whole or not at all."""
    samples, confidence = params.evaluation.samples, params.evaluation.confidence
    page = render_difference(
        difference,
        png_bytes(forest(difference.gaps, difference.clients)) if difference.gaps else None,
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
