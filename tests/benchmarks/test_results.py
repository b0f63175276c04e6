from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation
from rich.console import Console

from benchmarks.report import Change, adaptation, adaptation_curves, scatter, write_comparison
from benchmarks.results import (
    METHODS,
    SINGLE_BEST,
    Arm,
    Results,
    Row,
    compare,
    described,
    pack_hits,
    read_results,
    write_results,
)
from benchmarks.tables import Claim, claims, console_tables, markdown_tables, tables
from mor.evaluation.statistics import Interval

SUITES = ("one", "two", "held_out")


def shares(
    method: str, values: tuple[float, ...], *, setting: str = "default", seed: int = 0, rate: float = 1e-3, n: int = 40
) -> list[Row]:
    """Preference and accuracy rows with the first ``value * n`` questions of each of ``SUITES`` answered as wanted."""
    rows = []
    for suite, value in zip(SUITES, values, strict=False):
        hits = [i < round(value * n) for i in range(n)]
        share = sum(hits) / n
        rows += [Row(setting, method, rate, seed, m, suite, share, n, pack_hits(hits)) for m in ("preference", "accuracy")]
    return rows


def number(
    method: str, measure: str, suite: str, value: float, *, setting: str = "default", seed: int = 0, rate: float = 1e-3
) -> Row:
    return Row(setting, method, rate, seed, measure, suite, value)


def random_hits(method: str, seed: int, hits: np.ndarray[Any, Any], suite: str = "one") -> Row:
    return Row("default", method, 1e-3, seed, "preference", suite, float(hits.mean()), len(hits), pack_hits(list(hits)))


def everything() -> list[Row]:
    """Every method known in the default setting, three clients alone among them, in five settings, with a search and curves."""
    rows = []
    methods = [m for m in METHODS if m not in (SINGLE_BEST, "mor_frozen")] + ["single_one", "single_two", "of_my_own"]
    for place, method in enumerate(methods):
        level = 0.9 if method.startswith("mor") else 0.1 + 0.02 * place
        for seed in (0, 1):
            rows += shares(method, (level, level - 0.05, level), seed=seed)
            busy = 0.0 if method in ("base", "centralised") else 1e5 + 100 * place
            rows += [number(method, way, suite, busy, seed=seed) for way in ("up_bytes", "down_bytes") for suite in SUITES[:2]]
            rows.append(number(method, "seconds", "total", 60.0 + place, seed=seed))
        rows += [row for rate in (0.5, 2.0) for row in shares(method, (level,) * 3, setting="search", seed=100, rate=rate)]
    for setting in ("hostile", "weak", "inflated"):
        rows += shares("mor", (0.9, 0.9, 0.9), setting=setting) + shares("uniform", (0.1, 0.2, 0.3), setting=setting)
    for method in ("mor", "mor_frozen"):
        rows += [number(method, "weight:one", f"shape@{r}", 0.9 - 0.2 * r, setting="broken") for r in range(4)]
    return rows


# --- the CSV ---


def test_hits_are_packed_to_the_bit_whatever_their_number() -> None:
    hits = [bool(int(bit)) for bit in "10110001101"]
    row = Row("default", "mor", 1e-3, 0, "preference", "one", 6 / 11, 11, pack_hits(hits))
    assert row.hits == "b1a0"  # 1011 0001, then 101 filled up to 1010 0000
    assert row.answers().tolist() == hits


@pytest.mark.parametrize("change", [{"value": 0.5}, {"n": 3}, {"n": 17}])
def test_hits_that_contradict_their_row_are_refused(change: dict[str, Any]) -> None:
    fields = {"value": 6 / 11, "n": 11} | change
    row = Row("default", "mor", 1e-3, 0, "preference", "one", **fields, hits="b1a0")
    with pytest.raises(ValueError, match="default, mor, seed 0, preference one"):
        row.answers()


def test_what_is_written_is_read_again_in_one_order(tmp_path: Path) -> None:
    rows = [*shares("uniform", (1 / 3, 0.2, 0.1), n=30), *shares("mor", (0.9, 0.8, 0.7), rate=5e-4)]
    write_results(tmp_path / "new" / "a.csv", rows)
    write_results(tmp_path / "b.csv", rows[6:] + rows[:6])
    assert read_results(tmp_path / "new" / "a.csv") == rows[6:] + rows[:6]  # mor before uniform
    assert (tmp_path / "new" / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_csv_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("setting,method\ndefault,mor\n")
    with pytest.raises(ValueError, match="expected \\['setting'"):
        read_results(tmp_path / "old.csv")


# --- statistics ---


def test_mean_and_worst_are_taken_in_each_seed_and_then_averaged() -> None:
    rows = shares("mor", (0.5, 1.0, 0.1), seed=0) + shares("mor", (1.0, 0.0, 0.3), seed=1)
    results = Results(rows, resamples=10)
    values = {q: results.estimate(Arm("default", "mor"), f"preference.{q}") for q in ("mean", "worst", "held_out", "two")}
    # mean: (.75 + .5) / 2; worst: (.5 + 0) / 2, not min(.75, .5); held-out: (.1 + .3) / 2; two: (1 + 0) / 2
    assert {q: e and e.value for q, e in values.items()} == pytest.approx(
        {"mean": 0.625, "worst": 0.25, "held_out": 0.2, "two": 0.5}
    )


def test_methods_that_answer_alike_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    hits = [rng.random(77) < 0.5 for _ in range(3)]
    rows = [random_hits(method, seed, hits[seed]) for seed in range(3) for method in ("mor", "uniform")]
    assert compare(rows, "default", "mor", "uniform", resamples=200) == Interval(0.0, 0.0, 0.0)


def test_the_bootstraps_spread_is_that_of_seeds_and_of_questions_added() -> None:
    rng = np.random.default_rng(0)
    hits = [rng.random(300) < p for p in (0.2, 0.3, 0.35, 0.5, 0.55)]
    estimate = Results([random_hits("mor", seed, h) for seed, h in enumerate(hits)], resamples=4000).estimate(
        Arm("default", "mor"), "preference.one"
    )
    p = np.array([h.mean() for h in hits])
    # five seeds drawn from five: var(p) / 5; in each, 300 questions drawn from 300: mean(p (1 - p)) / 300 / 5
    expected = np.sqrt(p.var() / 5 + np.mean(p * (1 - p)) / 300 / 5)
    assert estimate
    assert estimate.draws.std() == pytest.approx(expected, rel=0.05)
    assert estimate.draws.mean() == pytest.approx(p.mean(), abs=4 * expected / np.sqrt(4000))


def test_with_one_seed_the_interval_is_that_of_its_questions() -> None:
    hits = np.arange(400) < 100
    estimate = Results([random_hits("mor", 7, hits)], resamples=4000).estimate(Arm("default", "mor"), "preference.mean")
    assert estimate
    assert estimate.draws.std() == pytest.approx(np.sqrt(0.25 * 0.75 / 400), rel=0.05)


def test_pairing_takes_out_what_both_methods_find_hard() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for seed, level in enumerate((0.2, 0.5, 0.8)):
        easy = rng.random(200)
        rows += [random_hits("uniform", seed, easy < level), random_hits("mor", seed, easy < level + 0.1)]
    results = Results(rows, resamples=1000)
    pair = results.pair(Arm("default", "mor"), Arm("default", "uniform"), "preference.mean")
    assert pair
    paired = (pair[0] - pair[1]).draws.std()
    assert paired < 0.3 * np.hypot(pair[0].draws.std(), pair[1].draws.std())


def test_five_seeds_cover_the_truth_less_often_than_they_say() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        rows = [number("mor", "kl", "all", value, seed=seed) for seed, value in enumerate(rng.normal(size=5))]
        interval = Results(rows, resamples=300).interval(Arm("default", "mor"), "kl.all")
        assert interval
        hits += interval.low <= 0 <= interval.high
    # about +-1.96 sqrt(4 / 5) = 1.75 standard errors, which Student's t with 4 degrees of freedom holds 0.85 of the time
    assert 0.78 <= hits / 400 <= 0.90


def test_a_difference_is_taken_over_the_seeds_that_both_have() -> None:
    rows = [*shares("mor", (0.9, 0.9), seed=0), *shares("mor", (0.1, 0.1), seed=1), *shares("uniform", (0.5, 0.5), seed=0)]
    difference = compare(rows, "default", "mor", "uniform", resamples=50)
    assert difference
    assert difference.value == pytest.approx(0.4)  # .9 - .5 at seed 0, not (.9 + .1) / 2 - .5
    assert compare(rows, "default", "mor", "median") is None


def test_a_further_method_changes_no_interval() -> None:
    rows = [row for seed in (0, 1) for row in shares("mor", (0.7, 0.6), seed=seed) + shares("uniform", (0.4, 0.3), seed=seed)]
    further = [row for seed in (0, 1) for row in shares("base", (0.2, 0.1), seed=seed)]
    assert compare(rows, "default", "mor", "uniform") == compare(further + rows, "default", "mor", "uniform")


def test_the_best_single_client_is_the_one_with_the_largest_mean() -> None:
    rows = shares("single_one", (0.9, 0.0)) + shares("single_two", (0.3, 0.8)) + [number("single_two", "kl", "all", 0.3)]
    results = Results(rows, resamples=10)
    estimates = [results.estimate(Arm("default", SINGLE_BEST), q) for q in ("preference.mean", "kl.all")]
    assert [e and e.value for e in estimates] == pytest.approx([0.55, 0.3])  # (.3 + .8) / 2 > (.9 + 0) / 2
    assert "hindsight" in described(SINGLE_BEST).label


def test_bytes_are_averaged_over_the_clients_that_took_part() -> None:
    rows = [number("single_one", "up_bytes", "one", 30.0), number("single_one", "up_bytes", "two", 0.0)]
    rows += [number("mor", "up_bytes", "one", 30.0), number("mor", "up_bytes", "two", 10.0)]
    rows += [number("base", "up_bytes", "one", 0.0), number("base", "up_bytes", "two", 0.0)]
    results = Results(rows, resamples=10)
    sent = {m: results.estimate(Arm("default", m), "up_bytes.mean") for m in ("single_one", "mor", "base")}
    assert {m: e and e.value for m, e in sent.items()} == {"single_one": 30.0, "mor": 20.0, "base": 0.0}


def test_results_that_cannot_be_paired_or_are_there_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="there twice"):
        Results(shares("mor", (0.5,)) * 2)
    with pytest.raises(ValueError, match=r"seed 0, one: methods answered \[40, 50\] questions"):
        compare(shares("mor", (0.5,)) + shares("base", (0.5,), n=50), "default", "mor", "base")


# --- claims and tables ---


def verdicts(rows: list[Row], weak: tuple[str, ...] = ()) -> dict[str, Claim]:
    return {claim.text: claim for claim in claims(Results(rows, resamples=200), weak)}


def test_a_claim_is_met_missed_or_not_measured() -> None:
    rows = shares("mor", (0.75, 0.75, 0.5), n=400) + shares("uniform", (0.5, 0.5, 0.5), n=400)
    rows += shares("median", (0.65, 0.65, 0.65), n=400) + shares("base", (0.1, 0.1, 0.6), n=400)
    found = verdicts(rows)
    difference = found["mean preference: MoR minus uniform mean"]
    assert difference.verdict == "met"  # .75 - .5 = .25 >= .15
    assert difference.measured
    assert difference.measured.value == pytest.approx(0.25)
    assert found["mean preference: MoR minus median"].verdict == "missed"  # .10 < .15
    assert found["mean preference: MoR minus minimum"].verdict == "not measured"
    assert found["held-out preference: MoR minus base"].verdict == "missed"  # .5 - .6 < 0
    assert "not measured" in markdown_tables(Results(rows, resamples=10), names=["claims"])


def test_a_difference_whose_intervals_overlap_is_missed_however_large() -> None:
    claim = verdicts(shares("mor", (0.7, 0.7), n=10) + shares("uniform", (0.5, 0.5), n=10))[
        "mean preference: MoR minus uniform mean"
    ]
    assert claim.measured
    assert claim.measured.value == pytest.approx(0.2)  # beyond the bar of .15, but 20 questions tell little
    assert (claim.verdict, claim.remark) == ("missed", "the intervals overlap")


def test_ratios_of_quality_and_bytes_are_held_against_their_bars() -> None:
    rows = shares("mor", (0.8, 0.8), n=400) + shares("oracle", (0.9, 0.9), n=400) + shares("centralised", (0.82, 0.82), n=400)
    rows += shares("fedavg_sft_a", (0.7, 0.9), n=400) + [number("fedavg_sft_a", "up_bytes", s, 5e6) for s in ("one", "two")]
    found = verdicts(rows + [number("mor", "up_bytes", s, 4e4) for s in ("one", "two")])
    assert found["mean preference: MoR as a share of oracle routing"].verdict == "missed"  # .8 / .9 = .89
    assert found["mean preference: MoR as a share of centralised"].verdict == "met"  # .8 / .82 = .976
    ratio = found["uplink bytes a client: FedAvg-SFT (a) over MoR"]
    assert (ratio.verdict, ratio.measured) == ("met", Interval(125.0, 125.0, 125.0))  # 5e6 / 4e4
    assert found["mean preference at those bytes: MoR minus FedAvg-SFT (a)"].verdict == "met"  # .8 - .8
    assert found["mean preference: MoR minus FedAvg-SFT (a)"].verdict == "reported"
    dearer = verdicts(rows + [number("mor", "up_bytes", s, 6e4) for s in ("one", "two")])
    assert dearer["uplink bytes a client: FedAvg-SFT (a) over MoR"].verdict == "missed"  # 5e6 / 6e4 = 83


def test_losses_are_those_of_one_router_between_settings() -> None:
    rows = shares("mor", (0.8, 0.8)) + shares("mor", (0.775, 0.775), setting="hostile")
    rows += shares("mor", (0.75, 0.8), setting="inflated") + shares("mor", (0.5, 0.8), setting="weak")
    found = verdicts(rows, weak=("one",))
    assert found["hostile minus default: MoR, mean preference"].verdict == "met"  # -.025 >= -.03
    assert found["inflated minus default: MoR, mean preference"].verdict == "missed"  # -.025 < -.01
    assert found["weak minus default: MoR, preference of two"].verdict == "met"  # the weak client's own loss is its own
    assert not any("preference of one" in text for text in found)
    assert verdicts(rows)["weak minus default: MoR, preference of one"].verdict == "missed"  # nobody was named weak
    assert verdicts(rows[:4])["weak minus default: MoR, preference of each client that is not weak"].verdict == "not measured"


def test_the_best_router_is_named_and_is_not_one_that_was_spared_a_seed() -> None:
    rows = shares("mor", (0.8, 0.8)) + shares("mor", (0.6, 0.6), seed=1) + shares("mor_top1", (0.75, 0.75))
    table = tables(Results(rows, resamples=10))["claims"]
    assert "about MoR, the best of" in table.note  # top-1's .75 is of the easy seed alone
    table = tables(Results([*rows, *shares("mor_top1", (0.7, 0.7), seed=1)], resamples=10))["claims"]
    assert "about MoR top-1, the best of" in table.note  # .725 > .7


def test_the_search_is_shown_in_full_with_the_best_rate_marked() -> None:
    rows = [r for rate, v in ((0.5, 0.2), (1.0, 0.4), (2.0, 0.3)) for r in shares("min", (v, v), setting="search", rate=rate)]
    table = tables(Results(rows, resamples=10))["search"]
    assert [[cell.text for cell in row[:4]] for _, same in table.groups for row in same] == [
        ["minimum", "0.5", "", "0.200"],
        ["minimum", "1", "✓", "0.400"],
        ["minimum", "2", "", "0.300"],
    ]


def test_the_other_settings_stand_in_one_short_table() -> None:
    found = tables(Results(everything(), resamples=20))["settings"]
    assert [name.partition(":")[0] for name, _ in found.groups] == ["weak", "hostile", "inflated"]
    for _, (mor, uniform) in found.groups:
        row = dict(zip(found.header, [cell.text for cell in uniform], strict=True))
        assert mor[found.header.index("MoR minus it")].text == ""
        assert (row["method"], row["seeds"], row["mean"], row["MoR minus it"]) == ("uniform mean", "1", "0.150", "+0.750")
    assert "settings" not in tables(Results(shares("mor", (0.5, 0.5)), resamples=20))


def test_every_method_and_setting_reaches_markdown_and_terminal() -> None:
    results = Results(everything(), resamples=20)
    text = markdown_tables(results)
    assert all(f"| {described(arm.method).label} |" in text for arm in results.arms("default"))
    assert all(f"### {name}" in text for name in ("Claims", "Headline", "Setting: hostile", "Learning-rate search", "Cost"))
    for table in text.split("### ")[1:]:  # every row as wide as its header
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    console = Console(file=io.StringIO(), width=160)
    console.print(console_tables(results))
    assert "FedAvg-DPO (b)" in console.file.getvalue()  # type: ignore[attr-defined]


# --- the report ---


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
    write_comparison(rows, tmp_path / "png", tmp_path / "benchmark.html", weak=["one"])
    page = Page((tmp_path / "benchmark.html").read_text())
    names = sorted(path.stem for path in (tmp_path / "png").iterdir())
    assert names == ["benchmark", *(f"benchmark_{name}" for name in ("adaptation", "bytes", "seconds", "settings"))]
    assert len(page.sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    for method in {row.method for row in rows} | {SINGLE_BEST}:
        assert described(method).label in page.text
        assert described(method).meaning in page.text
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
def test_a_figure_without_rows_is_left_out(rows: list[Row], drawn: list[str], tmp_path: Path) -> None:
    write_comparison(rows, tmp_path / "png", tmp_path / "page.html")
    assert [path.stem for path in (tmp_path / "png").iterdir()] == drawn
    assert "not measured" in (tmp_path / "page.html").read_text()


def test_no_label_of_a_crowd_covers_another_or_a_point() -> None:
    results = Results([row for row in everything() if row.setting == "default"], resamples=20)
    arms = [arm for arm in results.arms("default") if arm.method != SINGLE_BEST]
    figure = scatter(results, arms, {"up_bytes.mean": "up"})
    (axis,) = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axis.texts if isinstance(text, Annotation)}
    assert boxes.keys() == {described(arm.method).label for arm in arms}
    for name, box in boxes.items():
        assert not box.count_overlaps([other for label, other in boxes.items() if label != name]), name
        for line in (line for line in axis.lines if line.get_marker() == "o"):
            assert not box.contains(*axis.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))), name  # type: ignore[index]
        inside = axis.get_window_extent()
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, name


def test_adaptation_shows_the_mean_of_the_seeds_and_where_the_client_changes() -> None:
    rows = [
        number(m, "weight:one", f"two words@{r}", w + seed, setting="broken", seed=seed)
        for seed in (0, 1)
        for m, r, w in (("mor", 0, 0.2), ("mor", 1, 0.1), ("mor_frozen", 0, 0.2), ("mor_frozen", 1, 0.3))
    ]
    (axis,) = adaptation(adaptation_curves(rows), {"broken": Change("one", "two words", 1)}).axes
    refitted, frozen, change = axis.lines
    assert np.asarray(refitted.get_ydata()) == pytest.approx([0.7, 0.6])  # (.2 + 1.2) / 2, (.1 + 1.1) / 2
    assert np.asarray(frozen.get_ydata()) == pytest.approx([0.7, 0.8])
    assert list(np.asarray(change.get_xdata())) == [0.5, 0.5]  # between rounds 0 and 1


def test_without_a_stated_change_the_weight_that_moves_most_is_shown() -> None:
    rows = [number("mor", f"weight:{c}", f"x@{r}", w, setting="newcomer") for c in "ab" for r, w in ((0, 0.5), (1, 0.4))]
    rows += [number("mor", "weight:c", f"y@{r}", w, setting="newcomer") for r, w in ((0, 0.0), (1, 0.9))]
    (axis,) = adaptation(adaptation_curves(rows), {}).axes
    assert axis.get_title("left") == "newcomer: c"
