"""MoR against other methods: the benchmark's one table of raw results and its statistics.

``read_results`` and ``write_results`` keep the table, a CSV with one ``Measurement`` a row. Every seed has its own
data, models and questions; all methods of one seed answer the same questions. So the intervals come from a *paired
two-level bootstrap* (Davison & Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8; Saravanan et al. 2020,
"Application of the hierarchical bootstrap to multi-level data in neuroscience")::

    s_1 .. s_S drawn from the S seeds with replacement; for each j, questions drawn from every suite of s_j, anew for each j
    theta* = 1/S sum_j f(suite means of draw j),        f the mean over clients, the worst client, one suite

``RESAMPLES`` times, the same draws for all methods, so that a difference between two of them is paired by seed and by
question. The worst client is found seed by seed, then averaged. A resample of one suite is a row of counts, and the
means of all methods one product of matrices: counts (resamples, N) @ hits (N, methods).

Its weakness: five seeds are few. Seeds drawn with replacement vary 1 - 1/S as much as seeds do, and a percentile interval
knows nothing of Student's t. Where seeds differ more than questions do, an interval that says 95 % covers about 85 % at five
seeds; where questions dominate, it covers what it says. With one seed it speaks of that seed alone.

Quantities are named as in ``reports/metrics.json``: ``<measure>.<suite|mean|worst>``, such as ``preference.mean``,
``accuracy.held_out``, ``kl.all``, ``seconds.total``. ``up_bytes.mean`` is over the clients that sent or got anything.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from benchmarks.catalogue import SEARCH, SETTINGS, SINGLE, SINGLE_BEST, Method, display_order, find_method
from mor.config import HELD_OUT, SUMMARIES
from mor.evaluation.metrics import MEASURES
from mor.evaluation.statistics import Estimate, Interval
from mor.files import write_whole
from mor.seeds import stream

RESAMPLES, CONFIDENCE = 2000, 0.95
SEED = 0  # of the resampling
MEAN, WORST = "preference.mean", "preference.worst"
CHUNK = 256  # resamples whose counts are held at a time


# --- the CSV ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """One measurement. ``value`` is a share for ``preference`` and ``accuracy``, else bytes, seconds or nats; ``n`` questions.

    ``hits`` holds the n booleans behind a share (``pack_hits``); for other measures n is 0 and ``hits`` empty. ``key``
    says what the result depends on.
    """

    setting: str
    method: str
    learning_rate: float
    seed: int
    measure: str
    suite: str
    value: float
    n: int = 0
    hits: str = ""
    key: str = ""

    def answers(self) -> NDArray[np.float32]:
        """The hits (n,) as 0 and 1; raises ``ValueError`` where they do not fit ``n`` and ``value``."""
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.hits), np.uint8))
        hits = bits[: self.n].astype(np.float32)
        if len(bits) - self.n not in range(8) or not self.n or abs(hits.mean() - self.value) > 1e-4:
            raise ValueError(
                f"{self.setting}, {self.method}, seed {self.seed}, {self.measure} {self.suite}: {len(bits)} packed hits do "
                f"not give n {self.n} and value {self.value}; delete the rows of this method and seed and measure them again"
            )
        return hits


KINDS = get_type_hints(Measurement)  # of the CSV's columns, in order


def pack_hits(hits: Sequence[bool]) -> str:
    """Booleans as hexadecimal digits, eight to a byte; the last byte is filled up with zeros."""
    return np.packbits(np.asarray(hits, dtype=bool)).tobytes().hex()


def read_results(path: Path) -> list[Measurement]:
    """Rows of the CSV; raises ``ValueError`` for other columns than those of ``Measurement``."""
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        if table.fieldnames != list(KINDS):
            raise ValueError(f"{path}: got the columns {table.fieldnames}, expected {list(KINDS)}; delete it and measure again")
        return [Measurement(**{name: KINDS[name](cell) for name, cell in row.items()}) for row in table]


def write_results(path: Path, rows: Iterable[Measurement]) -> None:
    """Write the CSV whole or not at all; methods come in one order, whichever was measured first."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(KINDS), lineterminator="\n")
    table.writeheader()
    table.writerows(map(vars, sorted(rows, key=lambda row: (row.setting, row.method, row.learning_rate, row.seed))))  # stable
    write_whole(path, text.getvalue())


# --- statistics -------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One method in one setting; ``learning_rate`` tells apart the entries of the search and is 0 elsewhere."""

    setting: str
    method: str
    learning_rate: float = 0.0

    @property
    def shown(self) -> Method:
        """How its method is shown."""
        return find_method(self.method)


def by_group(entries: Iterable[Entry]) -> list[tuple[str, list[Entry]]]:
    """Entries that stand in the order to show them, with the name of each group."""
    return [(name, list(same)) for name, same in groupby(entries, key=lambda entry: entry.shown.group)]


class Results:
    """Estimates with paired intervals from the rows of the CSV; what was not measured is None.

    Raises ``ValueError`` for a result that is there twice, and where methods of one seed answered different numbers of
    questions.
    """

    def __init__(self, rows: Iterable[Measurement], *, resamples: int = RESAMPLES) -> None:
        self.rows, self.resamples = list(rows), resamples
        self._found: dict[tuple[Entry, str, str], dict[int, Measurement]] = {}
        self._draws: dict[tuple[tuple[int, ...], str], dict[tuple[Entry, str], NDArray[np.float32]]] = {}
        for row in self.rows:
            entry = Entry(row.setting, row.method, row.learning_rate if row.setting == SEARCH else 0.0)
            by_seed = self._found.setdefault((entry, row.measure, row.suite), {})
            if row.seed in by_seed:
                raise ValueError(f"{entry}, seed {row.seed}: {row.measure} {row.suite} is there twice; delete one of the rows")
            by_seed[row.seed] = row
        for setting in dict.fromkeys(row.setting for row in self.rows if row.setting != SEARCH):
            singles = [entry for entry in self.entries(setting) if entry.method.startswith(SINGLE)]
            if len(singles) > 1 and (best := self.best(singles)):
                copied = {key: found for key, found in self._found.items() if key[0] == best}
                self._found |= {(Entry(setting, SINGLE_BEST), *key[1:]): found for key, found in copied.items()}

    def entries(self, setting: str) -> list[Entry]:
        """What was asked questions in ``setting``, in the order to show it."""
        found = {entry for entry, measure, _ in self._found if entry.setting == setting and measure == "preference"}
        return sorted(found, key=lambda entry: (display_order(entry.method), entry.learning_rate))

    def settings(self) -> list[str]:
        """Settings in which questions were asked, the default first and the search last."""
        found = {entry.setting for entry, measure, _ in self._found if measure == "preference"}
        known = [name for name in SETTINGS if name in found]
        return sorted(known + sorted(found - set(known)), key=lambda name: name == SEARCH)

    def clients(self, setting: str) -> list[str]:
        """Clients with a suite of their own, in the order of the rows."""
        suites = (suite for entry, measure, suite in self._found if (entry.setting, measure) == (setting, "preference"))
        return [suite for suite in dict.fromkeys(suites) if suite != HELD_OUT]

    def seeds(self, entry: Entry, quantity: str, clients: Collection[str] = ()) -> set[int]:
        """Seeds at which all of ``quantity`` was measured."""
        parts = [set(self._found.get(part, {})) for part in self._parts(entry, quantity, clients)]
        return set.intersection(*parts) if parts else set()

    def best(self, entries: Iterable[Entry]) -> Entry | None:
        """The entry of the largest mean preference, with hindsight, among those that were measured on the most seeds."""
        seeds = {entry: sorted(self.seeds(entry, MEAN)) for entry in entries}
        means = {entry: (len(at), float(self._values(entry, MEAN, at).mean())) for entry, at in seeds.items() if at}
        return max(means, key=means.__getitem__) if means else None

    def estimate(
        self, entry: Entry, quantity: str, seeds: Iterable[int] | None = None, clients: Collection[str] = ()
    ) -> Estimate | None:
        """``quantity`` over ``seeds``, all that there are if None; summaries are over ``clients``, all if empty."""
        own = self.seeds(entry, quantity, clients)
        wanted = tuple(sorted(own if seeds is None else seeds))
        if not wanted or not own.issuperset(wanted):
            return None
        measure, _, name = quantity.partition(".")
        values = self._values(entry, quantity, wanted, clients)
        draws: NDArray[Any]
        if measure in MEASURES:
            suites = [suite for _, _, suite in self._parts(entry, quantity, clients)]
            draws = np.stack([self._resampled(wanted, suite)[entry, measure] for suite in suites])  # (suites, B, S)
        else:
            draws = values[:, self._picks(wanted)]
        over_clients = np.min if name == "worst" else np.mean
        return Estimate(float(over_clients(values, axis=0).mean()), over_clients(draws, axis=0).mean(axis=1, dtype=np.float64))

    def interval(self, entry: Entry, quantity: str) -> Interval | None:
        """``quantity`` with its interval over all seeds that there are."""
        estimate = self.estimate(entry, quantity)
        return estimate.interval(CONFIDENCE) if estimate else None

    def _values(self, entry: Entry, quantity: str, seeds: Iterable[int], clients: Collection[str] = ()) -> NDArray[np.float64]:
        """What was measured of each part of ``quantity`` (clients, suites) at each seed: (parts, S)."""
        return np.array([[self._found[part][seed].value for seed in seeds] for part in self._parts(entry, quantity, clients)])

    def paired(self, first: Entry, second: Entry, quantity: str) -> tuple[Estimate, Estimate] | None:
        """Both over the seeds and clients that they have in common, with the same draws."""
        clients = [c for c in self.clients(first.setting) if c in self.clients(second.setting)]
        common = self.seeds(first, quantity, clients) & self.seeds(second, quantity, clients)
        one, other = (self.estimate(entry, quantity, common, clients) for entry in (first, second))
        return (one, other) if one and other else None

    def difference(self, first: Entry, second: Entry, quantity: str) -> Estimate | None:
        """``first`` less ``second``, paired by seed and question."""
        pair = self.paired(first, second, quantity)
        return pair[0] - pair[1] if pair else None

    def _parts(self, entry: Entry, quantity: str, clients: Collection[str]) -> list[tuple[Entry, str, str]]:
        measure, _, name = quantity.partition(".")
        if name not in SUMMARIES:
            return [(entry, measure, name)]
        if measure in MEASURES:
            return [(entry, measure, client) for client in clients or self.clients(entry.setting)]
        found = [key for key in self._found if key[:2] == (entry, measure)]
        return [key for key in found if any(row.value > 0 for row in self._found[key].values())] or found

    def _picks(self, seeds: tuple[int, ...]) -> NDArray[np.int64]:
        """Which seed, by place, stands in each of the S places of a resample: (B, S)."""
        return stream(SEED, "seeds", *seeds).integers(len(seeds), size=(self.resamples, len(seeds)))

    def _resampled(self, seeds: tuple[int, ...], suite: str) -> dict[tuple[Entry, str], NDArray[np.float32]]:
        """Resampled means (B, S) of every entry and measure that has ``suite`` at all ``seeds``."""
        if (seeds, suite) not in self._draws:
            wanted = {
                (entry, measure): by_seed
                for (entry, measure, name), by_seed in self._found.items()
                if name == suite and measure in MEASURES and by_seed.keys() >= set(seeds)
            }
            picks = self._picks(seeds)
            draws = np.empty((*picks.shape, len(wanted)), np.float32)  # (B, S, columns)
            for place, seed in enumerate(seeds):
                columns = [by_seed[seed].answers() for by_seed in wanted.values()]
                if len(sizes := {len(column) for column in columns}) > 1:
                    raise ValueError(f"seed {seed}, {suite}: methods answered {sorted(sizes)} questions; measure them again")
                rng = stream(SEED, "questions", seed, suite)
                draws[picks == place] = _resampled_means(np.stack(columns, axis=1), int((picks == place).sum()), rng)
            self._draws[seeds, suite] = {key: draws[..., column] for column, key in enumerate(wanted)}
        return self._draws[seeds, suite]


def _resampled_means(hits: NDArray[np.float32], resamples: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Means (resamples, columns) of ``hits`` (N, columns), every row over N questions drawn with replacement."""
    n, means = len(hits), np.empty((resamples, hits.shape[1]), np.float32)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        chosen = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=rows * n).reshape(rows, n)
        means[start : start + rows] = counts.astype(np.float32) @ hits / n  # whole numbers below 2**24: equal hits stay equal
    return means
