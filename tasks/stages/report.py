"""Figures, the table of results and the report page, from what the evaluation measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mor.evaluation.metrics import Evaluation
from mor.files import fresh_folder, write_whole
from tasks.project import paths
from tasks.project.decorators import task
from tasks.reports.figures import RouterWeight
from tasks.reports.images import figure_png, thumbnail
from tasks.reports.plotting import Drawing
from tasks.reports.report_page import Sample, pick_samples, render_report, report_drawings
from tasks.tracking.runs import stage_run


@task
def write_report(samples: int) -> None:
    """Write ``reports/plots/`` and ``reports/report.html`` (``samples`` questions a suite), each whole or not at all."""
    with stage_run("report", {"evaluation": {"samples": samples}}) as run:
        evaluation = Evaluation.model_validate_json(paths.EVALUATION.read_bytes())
        metrics = json.loads(paths.METRICS.read_bytes())
        rounds, weights = read_rounds(paths.ROUNDS), read_weights(paths.ROUTER_WEIGHTS)
        drawn = list(report_drawings(metrics, rounds, weights, evaluation.clients))
        drawings = [(drawing, figure_png(drawing.figure)) for drawing in drawn]
        write_plots(paths.PLOTS, drawings, metrics["models"])
        page = render_report(
            metrics,
            drawings,
            {
                suite: [Sample(base, aligned, thumbnail(paths.EVAL / base.image)) for base, aligned in replies]
                for suite, replies in pick_samples(evaluation, samples).items()
            },
            clients=evaluation.clients,
            data_card=paths.DATA_CARD.read_text(encoding="utf-8") if paths.DATA_CARD.exists() else "",
            contact_sheet=paths.CONTACT_SHEET.read_bytes() if paths.CONTACT_SHEET.exists() else None,
        )
        write_whole(paths.REPORT, page)
        run.artifact(paths.REPORT)
        run.artifact(paths.PLOTS)
        run.metrics({"figures": len(drawings), "page_bytes": len(page.encode())})


def write_plots(folder: Path, drawings: list[tuple[Drawing, bytes]], models: Mapping[str, Any]) -> None:
    """A fresh ``folder`` with every figure as PNG, and the results table."""
    with fresh_folder(folder) as draft:
        for drawing, png in drawings:
            (draft / f"{drawing.name}.png").write_bytes(png)
        with (draft / paths.PREFERENCE_CSV.name).open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["model", "measure", "suite", "value", "low", "high"])
            for model, measures in models.items():
                for measure, suites in measures.items():
                    table.writerows([model, measure, suite, i["value"], i["low"], i["high"]] for suite, i in suites.items())


def read_rounds(path: Path) -> list[dict[str, float]]:
    """Rows of ``reports/rounds.csv`` as numbers; empty cells are left out."""
    with path.open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def read_weights(path: Path) -> list[RouterWeight]:
    """Rows of ``reports/router_weights.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [RouterWeight(int(row["round"]), row["category"], row["client"], float(row["weight"])) for row in rows]
