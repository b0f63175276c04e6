"""Redraw what is published of the committed results.

What stands between the markers of the README (in short) and of ``docs/benchmark.md`` (every table), and the figures in
``docs/images``, come from ``benchmarks/results/benchmark.csv`` and from nothing else; nobody types them in. The sentences
around the markers are written by hand: say there which commit was measured.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from mor.config import load_params
from mor.errors import UserError
from tasks.project import command_line, paths

README, EVERYTHING = Path("README.md"), Path("docs") / "benchmark.md"
IMAGES = Path("docs") / "images"
BEGIN, END = "<!-- results: python -m benchmarks.readme -->\n", "<!-- end of results -->\n"


def publish(
    stale: Annotated[bool, typer.Option("--stale", help="results that were measured with other settings too")] = False,
) -> None:
    """Report, figures, the README's table and the page of all tables."""
    from benchmarks.catalogue import federations
    from benchmarks.plan import up_to_date
    from benchmarks.results import read_results
    from benchmarks.run import RESULTS, report_results
    from benchmarks.tables import markdown, markdown_tables, short_table

    params, rows = load_params(), read_results(RESULTS)
    known = federations(params.clients, params.base)
    results, checked = report_results(known, rows if stale else up_to_date(params, rows))
    IMAGES.mkdir(exist_ok=True)
    for figure in sorted(paths.BENCHMARK_PLOTS.glob("*.png")):
        shutil.copy(figure, IMAGES)
    for page, tables in ((README, markdown(short_table(results, checked))), (EVERYTHING, markdown_tables(results, checked))):
        page.write_text(between_markers(page.read_text(), tables))


def between_markers(page: str, tables: str) -> str:
    """``page`` with ``tables`` in place of what stands between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"a page lost its markers {BEGIN.strip()} and {END.strip()}: put them where the tables belong")
    return f"{before}{begin}\n{tables}\n{end}{after}"


if __name__ == "__main__":
    command_line.command(publish)
