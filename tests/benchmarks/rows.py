"""Rows of results as tests need them."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.catalogue import METHODS, SINGLE_BEST
from benchmarks.results import Measurement, pack_hits

SUITES = ("one", "two", "held_out")


def shares(
    method: str, values: tuple[float, ...], *, setting: str = "default", seed: int = 0, rate: float = 1e-3, n: int = 40
) -> list[Measurement]:
    """Preference and accuracy rows with the first ``value * n`` questions of each of ``SUITES`` answered as wanted."""
    rows = []
    for suite, value in zip(SUITES, values, strict=False):
        hits = [i < round(value * n) for i in range(n)]
        share = sum(hits) / n
        rows += [
            Measurement(setting, method, rate, seed, m, suite, share, n, pack_hits(hits)) for m in ("preference", "accuracy")
        ]
    return rows


def number(
    method: str, measure: str, suite: str, value: float, *, setting: str = "default", seed: int = 0, rate: float = 1e-3
) -> Measurement:
    return Measurement(setting, method, rate, seed, measure, suite, value)


def random_hits(method: str, seed: int, hits: np.ndarray[Any, Any], suite: str = "one") -> Measurement:
    return Measurement("default", method, 1e-3, seed, "preference", suite, float(hits.mean()), len(hits), pack_hits(list(hits)))


def everything() -> list[Measurement]:
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
