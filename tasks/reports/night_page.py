"""The page of one night: how it ended, what was delivered, what ran, what the gate found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.reports.html import render_page


class Night(BaseModel):
    """``reports/night.json``: deliveries, stages and verdict as their own modules describe them."""

    night: str
    ending: str
    message: str
    deliveries: list[dict[str, Any]]
    stages: list[dict[str, Any]]  # stage, state, seconds
    verdict: dict[str, Any] | None  # checks
    metrics: dict[str, Any]  # reports/metrics.json


def render_night(night: Night, drift: bytes | None) -> str:
    """A self-contained HTML page; ``drift`` is a picture of the deliveries' findings as PNG."""
    return render_page(Path(__file__).with_name("night.html.j2"), night=night, drift=drift)
