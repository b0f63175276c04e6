"""The benchmark's report: figures as PNG, and one HTML page with every figure and table inside it.

The look is that of every other page and figure (``tasks.reports``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.catalogue import DEFAULT, SETTINGS, ClientChange, display_order, find_method, setting_meaning
from benchmarks.claims import MISSING, Claim, check_claims
from benchmarks.figures import draw_figures
from benchmarks.results import MEAN, WORST, Entry, Measurement, Results
from benchmarks.tables import build_tables
from mor.files import write_whole
from tasks.reports.html import render_page
from tasks.reports.images import figure_png
from tasks.reports.plotting import Drawing
from tasks.reports.units import in_bytes

Changes = Mapping[str, ClientChange]  # by the setting's name


def write_benchmark_page(
    rows: Iterable[Measurement], folder: Path, html: Path, *, weak: Collection[str] = (), changes: Changes | None = None
) -> Results:
    """Write the figures as PNG into ``folder`` and the page to ``html``; returns the results, for tables on the terminal.

    ``weak`` names the weak clients of the setting of that name; ``changes`` says, by setting, what the adaptation figure
    shows: without it, the weight that moves most.
    """
    results = Results(rows)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = [(drawing, figure_png(drawing.figure)) for drawing in draw_figures(results, changes or {})]
    for drawing, png in drawings:
        (folder / f"{drawing.name}.png").write_bytes(png)
    write_whole(html, render(results, drawings, weak))
    return results


def render(results: Results, drawings: Sequence[tuple[Drawing, bytes]], weak: Collection[str] = ()) -> str:
    """The page; ``drawings`` come with their PNGs."""
    asked = [entry for setting in results.settings() for entry in results.entries(setting)]
    names = {method for _, method, _ in asked} | {row.method for row in results.rows}
    ordered = map(find_method, sorted(names, key=display_order))
    present = {row.setting for row in results.rows}
    return render_page(
        Path(__file__).with_name("report.html.j2"),
        tiles=tiles(results, check_claims(results, weak)),
        tables=build_tables(results, weak),
        drawings={drawing.name: (drawing, png) for drawing, png in drawings},
        methods=[(group, list(same)) for group, same in groupby(ordered, key=lambda method: method.group)],
        settings={name: setting_meaning(name) for name in dict.fromkeys([*SETTINGS, *sorted(present)]) if name in present},
        clients=results.clients(DEFAULT),
    )


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
