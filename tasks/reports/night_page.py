"""The page of one night: how it ended, what was delivered, what ran, what the gate found."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from mor.text import visible


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
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    picture = f"data:image/png;base64,{b64encode(drift).decode()}" if drift else ""
    return environment.get_template("night.html.j2").render(night=night, drift=picture)
