"""Redraw what the README publishes from the committed results: ``python -m benchmarks.readme``.

The tables between the README's markers and the figures in ``docs/images`` come from ``benchmarks/results/benchmark.csv`` and
from nothing else; nobody types them in.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mor.config import load_params
from mor.evaluation.comparison import read_results
from mor.evaluation.comparison_tables import markdown_tables
from tasks import paths
from tasks.compare import RESULTS, report_comparison, up_to_date

README = Path("README.md")
IMAGES = Path("docs") / "images"
BEGIN, END = "<!-- results: python -m benchmarks.readme -->\n", "<!-- end of results -->\n"
TABLES = ("claims", "headline", "setting.hostile", "setting.inflated", "setting.weak", "cost")


def publish() -> None:
    """Report, figures, and the README's tables."""
    params = load_params()
    results, weak = report_comparison(up_to_date(params, read_results(RESULTS)))
    IMAGES.mkdir(exist_ok=True)
    for figure in sorted(paths.BENCHMARK_PLOTS.glob("*.png")):
        shutil.copy(figure, IMAGES)
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + "\n" + markdown_tables(results, weak, TABLES) + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    publish()
