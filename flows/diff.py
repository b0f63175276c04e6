"""How two runs differ: settings, data, metrics, answers that changed.

A and B are nights (2026-01-02), ids of MLflow runs or their beginnings, or names of runs. Without them: the last two nights.
With one: that night and the one before it.
"""

from __future__ import annotations

from typing import Annotated

import typer


def diff(
    a: Annotated[str | None, typer.Argument(metavar="A", help="the older run", show_default=False)] = None,
    b: Annotated[str | None, typer.Argument(metavar="B", help="the newer run", show_default=False)] = None,
) -> None:
    """Print the differences and write ``reports/diff.html``."""
    from tasks.reports.diff import compare_runs

    compare_runs(a, b)
