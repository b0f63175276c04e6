"""The table at the end of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tasks.reports.console import show_results


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def measures(preference: float, accuracy: float) -> dict[str, Any]:
    suites = ("documents", "held_out", "mean", "worst")
    values = {"preference": preference, "accuracy": accuracy}
    return {name: {suite: estimate(value) for suite in suites} for name, value in values.items()}


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    metrics = {
        "models": {"base": measures(0.5, 0.75), "aligned": measures(0.625, 0.7)},
        "reward_models": {"documents": {"pair_accuracy": {"documents": {"correctness": estimate(0.875), "style": 1.0}}}},
        "router": {"accuracy": 0.9, "entropy": 0.25},
        "wire": {"documents": {"up_bytes": 1500, "down_bytes": 2_500_000}},
        "seconds": {"align": 61.6},
        "settings": {"seed": 3, "router": "uniform"},
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "metrics.json").write_text(json.dumps(metrics))
    console = Console(width=80, record=True, quiet=False)
    show_results(console)
    return console.export_text()


def test_every_suite_shows_base_aligned_intervals_and_the_change_in_points(shown: str) -> None:
    # .5 -> .625 is +12.5 points, .75 -> .7 is -5.0; an interval is the value -+ .1
    for suite in ("documents", "held-out", "mean", "worst"):
        (line,) = [line for line in shown.splitlines() if line.split()[:1] == [suite] and "+12.5" in line]
        assert line.split() == [
            suite, "50.0", "(40-60)", "62.5", "(52-72)", "+12.5", "75.0", "(65-85)", "70.0", "(60-80)", "-5.0",
        ]  # fmt: skip


def test_reward_models_wire_router_and_clock_are_shown(shown: str) -> None:
    (line,) = [line for line in shown.splitlines() if "1.5 kB" in line]
    assert line.split() == ["documents", "87.5", "(78-98)", "100.0", "-", "1.5", "kB", "2,500.0", "kB"]
    assert "accuracy 90.0, entropy 0.25" in shown
    assert "align 62" in shown
    assert "seed 3  router uniform" in shown


def test_where_to_look_next_is_named(shown: str) -> None:
    for place in ("reports/report.html", "mor ui", "dvc metrics show", "dvc plots show"):
        assert place in shown


def test_before_the_first_evaluation_the_missing_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    show_results()
    assert "reports/metrics.json is not there yet" in capsys.readouterr().out
