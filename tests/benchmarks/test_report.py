from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks.catalogue import SINGLE_BEST, find_method
from benchmarks.claims import check_claims
from benchmarks.report import write_benchmark_page
from benchmarks.results import Measurement, Results
from tests.benchmarks.rows import everything, number, shares


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe"}
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_every_method_setting_and_figure(tmp_path: Path) -> None:
    rows = everything()
    results = Results(rows)
    write_benchmark_page(results, check_claims(results, weak=["one"]), {}, tmp_path / "png", tmp_path / "benchmark.html")
    page = Page((tmp_path / "benchmark.html").read_text())
    names = sorted(path.stem for path in (tmp_path / "png").iterdir())
    assert names == ["benchmark", *(f"benchmark_{name}" for name in ("adaptation", "bytes", "seconds", "settings"))]
    assert len(page.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for method in {row.method for row in rows} | {SINGLE_BEST}:
        assert find_method(method).label in page.text
        assert find_method(method).meaning in page.text
    for setting in ("hostile", "weak", "inflated", "broken", "search"):
        assert setting in page.text
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("rows", "drawn"),
    [
        ([], []),
        (shares("mor", (0.5, 0.5), setting="search"), []),
        (shares("mor", (0.5, 0.5, 0.5)), ["benchmark"]),
        ([*shares("base", (0.5, 0.5)), number("base", "seconds", "total", 0.0)], ["benchmark"]),
    ],
)
def test_a_figure_without_rows_is_left_out(rows: list[Measurement], drawn: list[str], tmp_path: Path) -> None:
    results = Results(rows)
    write_benchmark_page(results, check_claims(results), {}, tmp_path / "png", tmp_path / "page.html")
    assert [path.stem for path in (tmp_path / "png").iterdir()] == drawn
    assert "not measured" in (tmp_path / "page.html").read_text()
