"""Redraw what is published of the committed results.

The tables between the README's markers, ``docs/benchmark.md`` with all of them, and the figures in ``docs/images`` come from
``benchmarks/results/benchmark.csv`` and from nothing else; nobody types them in.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from mor.config import load_params
from tasks.project import command_line, paths

README, EVERYTHING = Path("README.md"), Path("docs") / "benchmark.md"
IMAGES = Path("docs") / "images"
BEGIN, END = "<!-- results: python -m benchmarks.readme -->\n", "<!-- end of results -->\n"
TABLES = ("claims", "headline", "settings")
INTRODUCTION = """# The benchmark's results in full

Written by `python -m benchmarks.readme` from `benchmarks/results/benchmark.csv`, which `make benchmark` measures. What was
missed and why: [0014](decisions/0014-what-the-benchmark-missed.md).

Times are from runs with nothing beside them, two results at a time on two cores; but those of variance weights, FedProx and
MoR's other routers are upper bounds, for some were taken beside other work. A result that was interrupted counts its last go
alone. Bytes are the messages' payload, up and down; headers and TLS come on top where clients are elsewhere.

![Preference against computing time](images/benchmark_seconds.png)
![Robustness by setting](images/benchmark_settings.png)
![How the router follows a changed client](images/benchmark_adaptation.png)

"""


def publish() -> None:
    """Report, figures, the README's tables and the page of all tables."""
    from benchmarks.plan import up_to_date
    from benchmarks.results import read_results
    from benchmarks.run import RESULTS, report_results
    from benchmarks.tables import markdown_tables

    params = load_params()
    results, weak = report_results(params, up_to_date(params, read_results(RESULTS)))
    IMAGES.mkdir(exist_ok=True)
    for figure in sorted(paths.BENCHMARK_PLOTS.glob("*.png")):
        shutil.copy(figure, IMAGES)
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(before + BEGIN + "\n" + markdown_tables(results, weak, TABLES) + "\n" + END + rest.partition(END)[2])
    EVERYTHING.write_text(INTRODUCTION + markdown_tables(results, weak))


if __name__ == "__main__":
    command_line.command(publish)
