from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks.catalogue import find_method
from benchmarks.claims import check_claims
from benchmarks.readme import BEGIN, END, between_markers
from benchmarks.results import Results
from benchmarks.tables import build_tables, console_tables, markdown_tables, short_table
from mor.errors import UserError
from tests.benchmarks.rows import everything, shares


def test_the_search_is_shown_in_full_with_the_best_rate_marked() -> None:
    rows = [r for rate, v in ((0.5, 0.2), (1.0, 0.4), (2.0, 0.3)) for r in shares("min", (v, v), setting="search", rate=rate)]
    table = build_tables(Results(rows, resamples=10), [])["search"]
    assert [[cell.text for cell in row[:4]] for _, same in table.groups for row in same] == [
        ["minimum", "0.5", "", "0.200"],
        ["minimum", "1", "✓", "0.400"],
        ["minimum", "2", "", "0.300"],
    ]


def test_the_other_settings_stand_in_one_short_table() -> None:
    found = build_tables(Results(everything(), resamples=20), [])["settings"]
    assert [name.partition(":")[0] for name, _ in found.groups] == ["weak", "hostile", "inflated"]
    for _, (mor, uniform) in found.groups:
        row = dict(zip(found.header, [cell.text for cell in uniform], strict=True))
        assert mor[found.header.index("MoR minus it")].text == ""
        assert (row["method"], row["seeds"], row["mean"], row["MoR minus it"]) == ("uniform mean", "1", "0.150", "+0.750")
    assert "settings" not in build_tables(Results(shares("mor", (0.5, 0.5)), resamples=20), [])


def test_every_method_and_setting_reaches_markdown_and_terminal() -> None:
    results = Results(everything(), resamples=20)
    checked = check_claims(results)
    text = markdown_tables(results, checked)
    assert all(f"| {find_method(entry.method).label} |" in text for entry in results.entries("default"))
    assert all(f"### {name}" in text for name in ("Claims", "Headline", "Setting: hostile", "Learning-rate search", "Cost"))
    for table in text.split("### ")[1:]:  # every row as wide as its header
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    console = Console(file=io.StringIO(), width=160)
    console.print(console_tables(results, checked))
    assert "FedAvg-DPO (b)" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_short_table_has_the_headline_in_eight_rows_at_most_and_counts_the_claims() -> None:
    results = Results(everything(), resamples=20)
    checked = check_claims(results)
    table = short_table(results, checked)
    ((_, rows),) = table.groups
    assert 2 <= len(rows) <= 8
    assert rows[0][0].text == "MoR"
    met = sum(claim.verdict == "met" for claim in checked)
    assert f"Of {len(checked)} claims: {met} met, " in table.note


def test_tables_go_between_a_pages_markers_and_leave_the_rest() -> None:
    page = f"before\n{BEGIN}old\n{END}after\n"
    assert between_markers(page, "new\n") == f"before\n{BEGIN}\nnew\n\n{END}after\n"
    with pytest.raises(UserError, match="lost its markers"):
        between_markers("no markers", "new\n")
