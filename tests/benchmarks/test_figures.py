from __future__ import annotations

import numpy as np
import pytest

from benchmarks.catalogue import SINGLE_BEST, ClientChange, find_method
from benchmarks.figures import adaptation, adaptation_curves, scatter
from benchmarks.results import Results
from tests.benchmarks.rows import everything, number


def test_no_number_of_a_crowd_covers_another_or_a_dot_and_the_key_names_them_all() -> None:
    results = Results([row for row in everything() if row.setting == "default"], resamples=20)
    entries = [entry for entry in results.entries("default") if entry.method != SINGLE_BEST]
    figure = scatter(results, entries, {"up_bytes.mean": "up"})
    figure.draw_without_rendering()
    (axis,) = figure.axes
    boxes = {text.get_text(): text.get_window_extent() for text in axis.texts}
    assert boxes.keys() == {str(number) for number in range(1, len(entries) + 1)}
    for name, box in boxes.items():
        assert not box.count_overlaps([other for label, other in boxes.items() if label != name]), name
        for line in (line for line in axis.lines if line.get_marker() == "o"):
            assert not box.contains(*axis.transData.transform((line.get_xdata()[0], line.get_ydata()[0]))), name
        inside = axis.get_window_extent()
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1, name
    (key,) = figure.legends
    named = {handle.get_marker().strip("$"): handle.get_label() for handle in key.legend_handles if handle.get_marker() != "o"}
    assert named == {str(number): find_method(entry.method).label for number, entry in enumerate(entries, 1)}


def test_adaptation_shows_the_mean_of_the_seeds_and_where_the_client_changes() -> None:
    rows = [
        number(m, "weight:one", f"one@{r}", w + seed, setting="broken", seed=seed)
        for seed in (0, 1)
        for m, r, w in (("mor", 0, 0.2), ("mor", 1, 0.1), ("mor_frozen", 0, 0.2), ("mor_frozen", 1, 0.3))
    ]
    (axis,) = adaptation(adaptation_curves(rows), {"broken": ClientChange("one", 1)}).axes
    refitted, frozen, change = axis.lines
    assert np.asarray(refitted.get_ydata()) == pytest.approx([0.7, 0.6])  # (.2 + 1.2) / 2, (.1 + 1.1) / 2
    assert np.asarray(frozen.get_ydata()) == pytest.approx([0.7, 0.8])
    assert list(np.asarray(change.get_xdata())) == [0.5, 0.5]  # between rounds 0 and 1


def test_without_a_stated_change_the_weight_that_moves_most_is_shown() -> None:
    rows = [number("mor", f"weight:{c}", f"x@{r}", w, setting="newcomer") for c in "ab" for r, w in ((0, 0.5), (1, 0.4))]
    rows += [number("mor", "weight:c", f"y@{r}", w, setting="newcomer") for r, w in ((0, 0.0), (1, 0.9))]
    (axis,) = adaptation(adaptation_curves(rows), {}).axes
    assert axis.get_title("left") == "newcomer: c"
