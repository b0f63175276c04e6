from __future__ import annotations

import pytest

from tasks.reports.units import in_bytes, in_points, in_time


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (999_600, "1 MB"), (4.651e9, "4.65 GB"), (2e12, "2 TB")]
)
def test_bytes_for_people(number: float, text: str) -> None:
    assert in_bytes(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0.44, "0.4 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")]
)
def test_time_for_people(number: float, text: str) -> None:
    assert in_time(number) == text


@pytest.mark.parametrize(("share", "text"), [(0.386, "+39"), (-0.031, "−3"), (-0.004, "0"), (0.0, "0")])
def test_differences_in_points(share: float, text: str) -> None:
    assert in_points(share) == text
