from __future__ import annotations

from mor.data.drift import Finding
from tasks.reports.night_page import COLOURS, drift_figure


def test_the_figure_has_a_panel_a_delivery_and_a_dot_at_every_distance() -> None:
    limits = {"warn": 0.1, "stop": 0.3}
    findings = [
        Finding("agreement", 1.0, p_value=1e-9, decision="stop", before=1.0, after=0.0, text="far", **limits),
        Finding("width", 0.0, p_value=1.0, decision="continue", before=32.0, after=32.0, text="same", **limits),
    ]
    figure = drift_figure({"a: one: held": findings, "b: two: merged": findings[:1]})
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["a: one: held", "b: two: merged"]
    dots = [float(line.get_xdata()[0]) for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert dots == [1.0, 0.0]
    colours = [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert colours == [COLOURS["stop"], COLOURS["continue"]]
