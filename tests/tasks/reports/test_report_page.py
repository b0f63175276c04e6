from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tasks.stages.report
from mor.evaluation.metrics import Evaluation
from mor.fedvqa.sheet import data_card
from tasks.reports.report_page import pick_samples, render_report
from tests.tasks.reports.pages import Page

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/a.png onerror=alert(1)>"


class Recorder:
    """Stands in for the tracking run; what it must do is tested with tracking itself."""

    def __init__(self) -> None:
        self.artifacts: list[str] = []
        self.values: dict[str, float] = {}

    def artifact(self, path: Path, folder: str | None = None) -> None:
        assert path.exists()
        self.artifacts.append(path.name)

    def metrics(self, values: dict[str, float], step: int | None = None) -> None:
        self.values |= values


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()

    @contextmanager
    def stage_run(stage: str, params: dict[str, Any]) -> Iterator[Recorder]:
        assert stage == "report"
        yield recorder

    monkeypatch.setattr(tasks.stages.report, "stage_run", stage_run)
    return recorder


def poison(project: Path) -> None:
    """Put hostile text wherever data, settings or a data card can bring it."""
    file = project / "reports" / "evaluation.json"
    raw = json.loads(file.read_text())
    for suites in raw["answers"].values():
        for replies in suites.values():
            for reply in replies:
                reply |= {"text": HOSTILE, "prompt": HOSTILE, "answer": HOSTILE, "category": HOSTILE}
    file.write_text(json.dumps(raw))
    metrics = json.loads((project / "reports" / "metrics.json").read_text())
    metrics["settings"] |= {HOSTILE: HOSTILE}
    (project / "reports" / "metrics.json").write_text(json.dumps(metrics))
    card = f"# Card\n\n{HOSTILE}\n\n![picture](http://evil.example/b.png) [link](javascript:alert(1))\n"
    (project / "reports" / "data_card.md").write_text(card)


def test_the_page_loads_nothing_from_outside_and_runs_nothing(project: Path, run: Recorder) -> None:
    poison(project)
    tasks.stages.report.write_report(2)
    html = (project / "reports" / "report.html").read_text()
    page = Page(html)
    assert page.loads
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert page.handlers == []
    assert "url(" not in html
    assert "@import" not in html
    assert "javascript:" not in html.replace("(javascript:alert(1))", "")  # the refused link stays as text
    assert (
        page.text.count("<script>alert('x')</script>") >= 8 * 4
    )  # shown as written: 4 suites, 2 questions, at least 4 times each


def test_the_page_shows_scores_and_both_answers(project: Path, run: Recorder) -> None:
    tasks.stages.report.write_report(2)
    page = Page((project / "reports" / "report.html").read_text())
    metrics = json.loads((project / "reports" / "metrics.json").read_text())
    before, after = (round(100 * metrics["models"][m]["preference"]["worst"]["value"]) for m in ("base", "aligned"))
    assert f"{before}\u2009% → {after}\u2009%" in page.text
    evaluation = Evaluation.model_validate_json((project / "reports" / "evaluation.json").read_bytes())
    shown = [reply for both in pick_samples(evaluation, 2).values() for pair in both for reply in pair]
    assert len(shown) == 4 * 2 * 2
    assert all(reply.text in page.text and reply.prompt in page.text for reply in shown)
    assert page.text.count("✓ preferred") == sum(reply.preferred for reply in shown)


def test_the_table_of_results_holds_every_interval(project: Path, run: Recorder) -> None:
    tasks.stages.report.write_report(1)
    with (project / "reports" / "plots" / "preference.csv").open() as file:
        rows = list(csv.DictReader(file))
    metrics = json.loads((project / "reports" / "metrics.json").read_text())
    assert len(rows) == 3 * 2 * 6  # base, aligned, gain; two measures; three clients, mean, worst, held out
    for row in rows:
        interval = metrics["models"][row["model"]][row["measure"]][row["suite"]]
        assert {key: float(row[key]) for key in ("value", "low", "high")} == interval
    assert run.artifacts == ["report.html", "plots"]
    assert run.values["figures"] == 6


def test_the_same_numbers_give_the_same_bytes_and_leave_nothing_half_written(project: Path, run: Recorder) -> None:
    def written() -> dict[str, bytes]:
        tasks.stages.report.write_report(1)
        reports = project / "reports"
        return {path.relative_to(reports).as_posix(): path.read_bytes() for path in reports.rglob("*") if path.is_file()}

    first = written()
    assert written() == first
    assert not [name for name in first if "partial" in name]


def test_a_project_with_little_measured_still_gets_its_page() -> None:
    metrics: dict[str, Any] = {"models": {}, "reward_models": {}, "router": {}, "wire": {}, "seconds": {}, "settings": {}}
    html = render_report(metrics, [], {}, clients=["one"], data_card="", contact_sheet=None)
    assert "One model, 1 client, a mixture of their rewards" in Page(html).text


def test_samples_are_evenly_spaced_and_never_more_than_there_are(project: Path) -> None:
    evaluation = Evaluation.model_validate_json((project / "reports" / "evaluation.json").read_bytes())
    ids = [base.id for base, _ in pick_samples(evaluation, 3)["medical"]]
    assert ids == ["medical-00000", "medical-00008", "medical-00016"]  # 24 questions: 0, 24 / 3, 2 * 24 / 3
    assert len(pick_samples(evaluation, 99)["medical"]) == 24


def test_the_real_data_card_becomes_a_section(project: Path, run: Recorder) -> None:
    styles = {"documents": "terse", "medical": "field"}
    clients = {name: project / "data" / "clients" / name for name in styles}
    card = data_card(clients, project / "data" / "public", project / "data" / "eval", styles=styles, error_rate=0.05)
    (project / "reports" / "data_card.md").write_text(card)
    tasks.stages.report.write_report(1)
    assert "Optical Recognition of Handwritten Digits" in Page((project / "reports" / "report.html").read_text()).text
