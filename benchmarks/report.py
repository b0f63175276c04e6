"""The benchmark's report: figures as PNG, and one HTML page with every figure and table inside it.

The look is that of every other page and figure (``tasks.reports``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.catalogue import DEFAULT, SETTINGS, ClientChange, display_order, find_method
from benchmarks.claims import MISSING, Claim
from benchmarks.figures import draw_figures
from benchmarks.results import MEAN, WORST, Entry, Results
from benchmarks.tables import build_tables
from mor.files import write_whole
from tasks.reports.html import render_page
from tasks.reports.images import figure_png
from tasks.reports.units import in_bytes


def write_benchmark_page(
    results: Results, checked: Sequence[Claim], changes: Mapping[str, ClientChange], folder: Path, html: Path
) -> None:
    """Write the figures as PNG into ``folder`` and the page to ``html``.

    ``changes`` says, by setting, what the adaptation figure shows: without it, the weight that moves most.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings = [(drawing, figure_png(drawing.figure)) for drawing in draw_figures(results, changes)]
    for drawing, png in drawings:
        (folder / f"{drawing.name}.png").write_bytes(png)
    asked = {entry.method for setting in results.settings() for entry in results.entries(setting)}
    methods = [find_method(name) for name in sorted(asked | {row.method for row in results.rows}, key=display_order)]
    present = {row.setting for row in results.rows}
    page = render_page(
        Path(__file__).with_name("report.html.j2"),
        tiles=tiles(results, checked),
        tables=build_tables(results, checked),
        drawings={drawing.name: (drawing, png) for drawing, png in drawings},
        methods=[(group, list(same)) for group, same in groupby(methods, key=lambda method: method.group)],
        settings={name: SETTINGS.get(name, "") for name in [*SETTINGS, *sorted(present - SETTINGS.keys())] if name in present},
        clients=results.clients(DEFAULT),
    )
    write_whole(html, page)


def tiles(results: Results, checked: Sequence[Claim]) -> list[tuple[str, str]]:
    """The shortest summary: numbers with their meaning."""
    verdicts = Counter(claim.verdict for claim in checked)
    met = "measured claims are met" + (f"; {verdicts[MISSING]} are not measured" if verdicts[MISSING] else "")
    found = [(f"{verdicts['met']} of {verdicts['met'] + verdicts['missed']}", met)]
    for quantity, say in ((MEAN, "mean preference"), (WORST, "worst client's preference")):
        if pair := results.paired(Entry(DEFAULT, "base"), Entry(DEFAULT, "mor"), quantity):
            found.append((f"{pair[0].value:.2f} → {pair[1].value:.2f}", f"{say}, base → MoR"))
    if sent := results.estimate(Entry(DEFAULT, "mor"), "up_bytes.mean"):
        found.append((in_bytes(sent.value), "leave a client in MoR's whole run"))
    return found
