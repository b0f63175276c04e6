"""The results on the terminal: tables from ``reports/metrics.json`` and where to look next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table

from mor.config import HELD_OUT, SUMMARIES
from mor.evaluation.metrics import MEASURES
from tasks.project import paths

WIDTH = 96  # columns that the widest table needs; a narrower terminal wraps its lines instead of hiding figures
NEXT = """\
[bold]reports/report.html[/]  plots and samples before and after
[bold]mor ui[/]               runs, compared
[bold]dvc metrics show[/], [bold]dvc plots show[/], [bold]dvc metrics diff[/]"""


def show_results(console: Console | None = None) -> None:
    """Print the results of the last complete run; says so where there is none."""
    console = console or Console()
    if not paths.METRICS.exists():
        console.print(f"{paths.METRICS} is not there yet: it is written by the evaluate stage.")
        return
    metrics = json.loads(paths.METRICS.read_text())
    console.width = max(console.width, WIDTH)
    settings = "  ".join(f"{name} {value}" for name, value in metrics.get("settings", {}).items())
    console.print(Group(f"[italic]{settings}[/]", models_table(metrics), *_details(metrics), "", NEXT))


def models_table(metrics: Mapping[str, Any]) -> Table:
    """Base against aligned with their intervals, one row a suite; shares in percent, the difference in points."""
    headings = [heading for measure in MEASURES for heading in (f"{measure}\nbase", "\naligned", "\nchange")]
    table = console_table("", [""], headings, dense=True)
    base, aligned = metrics["models"]["base"], metrics["models"]["aligned"]
    summaries = (*SUMMARIES, HELD_OUT)
    clients = [suite for suite in base["preference"] if suite not in summaries]
    for suite in (*clients, *summaries):
        row = [suite.replace("_", "-")]
        for measure in MEASURES:
            before, after = base[measure].get(suite), aligned[measure].get(suite)
            row += [_share(before), _share(after), _change(before, after)]
        table.add_row(*row, end_section=suite == clients[-1])
    return table


def console_table(title: str, texts: Sequence[str], numbers: Sequence[str] = (), *, dense: bool = False) -> Table:
    """A table without rows: headings of columns of text, then those of columns of numbers; ``dense`` puts them closer."""
    looks: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "pad_edge": False, "collapse_padding": dense}
    table = Table(*texts, title=title, box=box.SIMPLE_HEAD, **looks)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _details(metrics: Mapping[str, Any]) -> list[Table]:
    """The clients' reward models and the wire; the router and the clock."""
    headings = ("reward model's pairs\ncorrectness", "\nstyle", "\nmalformed", "wire\nup", "\ndown")
    clients = console_table("", [""], headings, dense=True)
    for client, counts in metrics.get("wire", {}).items():
        pairs = metrics.get("reward_models", {}).get(client, {}).get("pair_accuracy", {}).get(client, {})
        kinds = [_share(pairs.get(kind)) for kind in ("correctness", "style", "malformed")]
        clients.add_row(client, *kinds, _kilobytes(counts.get("up_bytes")), _kilobytes(counts.get("down_bytes")))
    router, seconds = metrics.get("router", {}), metrics.get("seconds", {})
    entropy = "-" if router.get("entropy") is None else f"{router['entropy']:.2f}"
    facts = Table.grid(padding=(0, 2))
    facts.add_row("router", f"accuracy {_share(router.get('accuracy'))}, entropy {entropy}")
    facts.add_row("seconds", ", ".join(f"{stage} {value:.0f}" for stage, value in seconds.items()))
    return [clients, facts]


def _value(metric: Any) -> float | None:
    """The number of a metric that is one, or that is ``{"value", "low", "high"}``."""
    number = metric.get("value") if isinstance(metric, Mapping) else metric
    return None if number is None else float(number)


def _share(metric: Any) -> str:
    value = _value(metric)
    if value is None:
        return "-"
    interval = f" [dim]({100 * metric['low']:.0f}-{100 * metric['high']:.0f})[/]" if isinstance(metric, Mapping) else ""
    return f"{100 * value:.1f}{interval}"


def _change(before: Any, after: Any) -> str:
    old, new = _value(before), _value(after)
    if old is None or new is None:
        return "-"
    points = 100 * (new - old)
    return f"[{'green' if points > 0 else 'red' if points < 0 else 'dim'}]{points:+.1f}[/]"


def _kilobytes(count: float | None) -> str:
    return "-" if count is None else f"{count / 1000:,.1f} kB"
