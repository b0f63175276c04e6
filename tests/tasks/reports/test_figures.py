from __future__ import annotations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tasks.reports import figures as plots
from tasks.reports.figures import RouterWeight
from tasks.reports.plotting import client_colours

CLIENTS = ["one", "two"]


def bars(axis: Axes) -> list[Rectangle]:
    return [patch for patch in axis.patches if isinstance(patch, Rectangle)]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def measured(base: dict[str, float], aligned: dict[str, float]) -> dict[str, object]:
    values = {"base": base, "aligned": aligned}
    return {
        model: {m: {s: interval(v) for s, v in v_.items()} for m in ("preference", "accuracy")} for model, v_ in values.items()
    }


def test_bars_are_as_high_as_the_scores_and_summaries_follow_the_clients() -> None:
    base = {"held_out": 0.2, "one": 0.3, "two": 0.4, "mean": 0.35, "worst": 0.3}
    aligned = {suite: value + 0.25 for suite, value in base.items()}
    figure = plots.score_bars(measured(base, aligned), CLIENTS)
    heights = [bar.get_height() for bar in bars(figure.axes[0])]
    order = ["one", "two", "mean", "worst", "held_out"]
    assert heights == pytest.approx([score for suite in order for score in (base[suite], aligned[suite])])
    assert words(figure)[:4] == ["30", "55", "40", "65"]


def test_a_client_has_one_colour_in_every_figure() -> None:
    scores = bars(plots.score_bars(measured({"two": 0.5}, {"two": 0.5}), CLIENTS).axes[0])
    wire = bars(plots.wire_bytes({"two": {"up_bytes": 5e3, "down_bytes": 5e3}}, CLIENTS).axes[0])
    seconds = bars(plots.stage_times({"align": 2.0, "reward_two": 1.0}, CLIENTS).axes[0])
    rows = [{"round": 1.0, "score_two": 0.1}, {"round": 1.0, "score_two": 0.2}]
    curves = plots.learning_curves(rows, CLIENTS).axes[3].lines
    own = to_rgb(client_colours(CLIENTS)["two"])
    assert scores[1].get_facecolor()[:3] == wire[0].get_facecolor()[:3] == seconds[0].get_facecolor()[:3] == own
    assert {to_rgb(line.get_color()) for line in curves} == {own}


def test_stages_are_in_the_pipelines_order() -> None:
    figure = plots.stage_times({"align": 3.0, "evaluate": 4.0, "fedvqa": 1.0, "reward_one": 2.0}, CLIENTS)
    assert [bar.get_width() for bar in bars(figure.axes[0])] == [1.0, 2.0, 3.0, 4.0]


def test_routing_shows_first_and_last_rounds_when_there_are_many() -> None:
    weights = [RouterWeight(r, "c", client, 0.5) for r in range(9) for client in CLIENTS]
    figure = plots.router_weights(weights, CLIENTS)
    assert [axis.get_title("center") for axis in figure.axes] == ["before GRPO", "round 1", "round 7", "round 8"]


def test_a_weight_stands_in_its_clients_column() -> None:
    weights = [RouterWeight(1, "c", "two", 0.9), RouterWeight(1, "c", "one", 0.1), RouterWeight(1, "d", "one", 1.0)]
    figure = plots.router_weights(weights, CLIENTS)
    # row c: one .1, two .9; row d: one 1.0, and two was not measured
    cells = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in figure.axes[0].texts}
    assert cells == {(0, 0): "0.10", (0, 1): "0.90", (1, 0): "1.00"}


def test_reward_models_have_a_panel_a_kind_with_judges_as_rows() -> None:
    models = {
        "one": {"pair_accuracy": {"one": {"style": 1.0}, "two": {"style": 0.25}}},
        "two": {"pair_accuracy": {"one": {}, "two": {"style": 0.75}}},
    }
    axis = plots.pair_accuracy(models, CLIENTS).axes[0]
    values = np.asarray(axis.images[0].get_array())
    assert axis.get_title("center") == "style"
    assert values[0].tolist() == [1.0, 0.25]
    assert np.ma.getmaskarray(axis.images[0].get_array())[1, 0] or np.isnan(values[1, 0])


def test_learning_curves_keep_the_logged_points_and_mark_where_rounds_begin() -> None:
    rows = [{"round": 1.0 + (i >= 3), "reward": float(i * i)} for i in range(5)]
    axis = plots.learning_curves(rows, CLIENTS).axes[0]
    raw, smooth, boundary = axis.lines
    assert np.asarray(raw.get_ydata()).tolist() == [0.0, 1.0, 4.0, 9.0, 16.0]
    assert np.asarray(smooth.get_ydata())[2] == pytest.approx(6.0)  # (0 + 1 + 4 + 9 + 16) / 5
    assert list(np.asarray(boundary.get_xdata())) == [3.5, 3.5]  # between the third step and the fourth


def test_a_step_without_a_value_is_left_out_of_its_curve() -> None:
    rows = [{"reward": 1.0}, {"kl": 0.1}, {"reward": 3.0}]
    raw = plots.learning_curves(rows, CLIENTS).axes[0].lines[0]
    assert np.asarray(raw.get_xdata()).tolist() == [1, 3]


def test_references_are_lines_at_their_bytes() -> None:
    sent = {"one": {"up_bytes": 2000, "down_bytes": 30000}}
    figure = plots.wire_bytes(sent, CLIENTS, {"LoRA FedAvg": 1_500_000})
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [1_500_000]  # type: ignore[index]
    assert words(figure) == ["up 2 kB", "down 30 kB", "LoRA FedAvg\n1.5 MB"]
