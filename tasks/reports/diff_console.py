"""The difference of two runs on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mor.evaluation.metrics import MEASURES
from mor.text import printable, words
from tasks.project import paths
from tasks.reports.console import console_table
from tasks.reports.difference import RunDifference, ScoreDifference, ValueChange, format_metric, pick_answers, worth_a_line
from tasks.reports.plotting import SUITE_TITLES
from tasks.reports.units import in_points

WIDTH = 110  # columns that the widest table needs
ANSWERS = 2  # a suite; the page shows as many as the report
NUMBERS = 16  # lines of other figures
OUTCOMES = {"better": "[green]better[/]", "worse": "[red]worse[/]", "reworded": "[dim]other words[/]"}


def print_difference(difference: RunDifference, confidence: float, console: Console | None = None) -> None:
    """Print the difference: what was changed, what that did to the scores, and some answers."""
    console = console or Console()
    console.width = max(console.width, WIDTH)
    console.print(f"[bold]A[/]  {escape(printable(difference.a.name))}\n[bold]B[/]  {escape(printable(difference.b.name))}")
    _print_changes(console, "Settings", difference.params, "no setting that a result depends on differs")
    _print_changes(console, "Data", difference.versions, "the same")
    if difference.scores:
        console.print(_scores(difference.scores, confidence))
    else:
        console.print("\n[bold]Scores[/]  not comparable: a run has kept no answers (reports/evaluation.json)")
    table = console_table("Other figures that differ", [""], ["A", "B"])
    for change in [change for change in difference.numbers if worth_a_line(change)][:NUMBERS]:
        table.add_row(change.name, *(format_metric(change.name, value) for value in (change.before, change.after)))
    if table.row_count:
        console.print(table)
    if left := len(difference.numbers) - table.row_count:
        console.print(f"[dim]and {left} other figures, in {paths.DIFF_REPORT}[/]")
    _print_answers(console, difference)


def _print_changes(console: Console, title: str, changes: Sequence[ValueChange], same: str) -> None:
    if not changes:
        console.print(f"\n[bold]{title}[/]  {same}")
        return
    table = console_table(title, ["", "A", "B"])
    for change in changes:
        table.add_row(change.name, _text(change.before), f"[bold]{_text(change.after)}[/]")
    console.print(table)


def _text(value: object) -> str:
    return "[dim]not set[/]" if value is None else escape(printable(value))


def _scores(scores: Iterable[ScoreDifference], confidence: float) -> Table:
    """One row a suite; shares in percent, differences in points with their intervals."""
    headings = [heading for measure in MEASURES for heading in (f"{measure}\nA", "\nB", "\nB less A")]
    title = f"Scores, with {100 * confidence:g} % intervals of B less A"
    table = console_table(title, [""], [*headings, "paired\nquestions"])
    rows: dict[str, list[ScoreDifference]] = {}
    for score in scores:
        rows.setdefault(score.suite, []).append(score)
    for suite, measures in rows.items():
        cells = [cell for score in measures for cell in (f"{100 * score.before:.1f}", f"{100 * score.after:.1f}", _gain(score))]
        table.add_row(words(SUITE_TITLES.get(suite, suite)), *cells, str(measures[0].paired or "none"))
    return table


def _gain(score: ScoreDifference) -> str:
    difference = score.difference
    tone = "green" if difference.low > 0 else "red" if difference.high < 0 else "dim"
    return f"[{tone}]{in_points(difference.value)}[/] [dim]({in_points(difference.low)} to {in_points(difference.high)})[/]"


def _print_answers(console: Console, difference: RunDifference) -> None:
    if not difference.asked:
        return
    counts = console_table("Answers that changed", [""], ["questions of both", "better", "worse", "other words"])
    for suite, asked in difference.asked.items():
        outcomes = difference.outcomes(suite)
        counts.add_row(words(suite), str(asked), *(str(outcomes[name]) for name in ("better", "worse", "reworded")))
    console.print(counts)
    examples = console_table("", ["suite", "question", "preferred", "A", "B", ""])
    for suite, answers in difference.answers.items():
        for answer in pick_answers(answers, ANSWERS):
            before, after = answer.before, answer.after
            texts = (escape(printable(text) or "(nothing)") for text in (after.prompt, after.answer, before.text, after.text))
            examples.add_row(words(suite), *texts, OUTCOMES[answer.outcome])
    if examples.row_count:
        console.print(examples)
