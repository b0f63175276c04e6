"""What a night leaves to be read: its MLflow run, ``reports/night.json`` and ``reports/night.html``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from mor.config import Params
from mor.files import read_json
from tasks.nights.deliveries import NOBODY, Delivery
from tasks.nights.journal import NightState
from tasks.project import paths
from tasks.reports.images import figure_png
from tasks.reports.night_page import Night, drift_figure, render_night
from tasks.tracking import runs as tracking
from tasks.tracking import store
from tasks.tracking.open_run import StageRun


@contextmanager
def recorded_run(night: str, params: Params) -> Iterator[str]:
    """Id of the night's MLflow run, below which the stages of the block are recorded."""
    os.environ[tracking.PARENT_VARIABLE] = run_id = _run_of(night, params)
    try:
        yield run_id
    finally:
        os.environ.pop(tracking.PARENT_VARIABLE, None)


def _run_of(night: str, params: Params) -> str:
    """The night's MLflow run, made when first asked for."""
    execution = f"night {night}"
    return tracking.find_parent(execution) or tracking.open_parent(execution, params, execution, {"mor.night": night})


def write_night(night: NightState, params: Params) -> None:
    """``reports/night.json`` and ``reports/night.html``, also kept in the night's MLflow run."""
    described = Night(
        night=night.name, ending=night.ending, message=night.message,
        deliveries=[delivery.model_dump() for delivery in night.deliveries],
        stages=[asdict(stage) for stage in night.stages],
        verdict=None if night.verdict is None else asdict(night.verdict),
        metrics=read_json(paths.METRICS),
    )  # fmt: skip
    paths.NIGHT.parent.mkdir(exist_ok=True)
    paths.NIGHT.write_text(described.model_dump_json(indent=1) + "\n")
    paths.NIGHT_REPORT.write_text(render_night(described, drift_picture(night.deliveries)), encoding="utf-8")
    run_id = _run_of(night.name, params)
    StageRun(run_id, run_id, "night").headline(_figures(night))
    tags = {"mor.ended": night.ending, "mor.message": night.message[:500]}
    store.keep_files(run_id, [paths.NIGHT, paths.NIGHT_REPORT], tags)
    tracking.close_parent(run_id, "FAILED" if night.ending == "Failed" else "FINISHED")


def drift_picture(deliveries: Sequence[Delivery]) -> bytes | None:
    """A picture of the deliveries' drift as PNG; None where none was judged."""
    judged = {f"{d.client}: {d.digest[:8]}: {d.decision}": d.drift for d in deliveries if d.drift and d.state != "empty"}
    return figure_png(drift_figure(judged), dpi=150) if judged else None


def _figures(night: NightState) -> dict[str, float]:
    """What of a night is worth comparing with other nights, under the names that it has every night."""
    figures: dict[str, float] = {}
    for delivery in night.deliveries:
        if delivery.client == NOBODY:
            continue
        for name in ("accepted", "duplicates", "quarantined"):
            key = f"ingest.{delivery.client}.{name}"
            figures[key] = figures.get(key, 0.0) + getattr(delivery, name)
        for finding in delivery.drift:
            figures[f"drift.{delivery.client}.{finding.name}"] = finding.statistic
    for check in night.verdict.checks if night.verdict else ():
        figures[f"gate.{check.name}"] = check.value
    return figures
