"""Stage ``report``: figures, tables and the page that shows them."""

from __future__ import annotations

from mor.config import load_params
from tasks.project import command_line


def report() -> None:
    """Draw what was measured and write ``reports/report.html``."""
    from tasks.stages.report import write_report

    write_report(load_params().evaluation.samples)


if __name__ == "__main__":
    command_line.stage(report)
