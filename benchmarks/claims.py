"""What the benchmark is to show, and whether it was measured so: every claim with its bar, from ``benchmarks.results``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from benchmarks.catalogue import AVERAGING_A, AVERAGING_B, DEFAULT, METHODS, MOR
from benchmarks.results import CONFIDENCE, MEAN, WORST, Entry, Results
from mor.config import HELD_OUT
from mor.evaluation.statistics import Estimate, Interval
from mor.text import words

MISSING = "not measured"
three_digits, two_digits, times = "{:.3f}".format, "{:.2f}".format, "{:.3g}×".format  # of a share, of nats, of a ratio


def signed(x: float) -> str:
    """A difference of shares with its sign: ``-0.031`` -> ``−0.031``."""
    return f"{round(x, 3) + 0.0:+.3f}".replace("-", "−")  # no negative zero


@dataclass(frozen=True)
class Claim:
    """A claim and what was measured: ``bar`` is the least value that meets it, None where there is none to meet.

    With ``apart`` the two methods' own intervals must not overlap; ``overlap`` says that they must not and do.
    """

    text: str
    bar: float | None
    measured: Interval | None
    apart: bool = False
    overlap: bool = False
    show: Callable[[float], str] = signed

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``reported`` (no bar) or ``not measured``."""
        if self.measured is None:
            return MISSING
        if self.bar is None:
            return "reported"
        return "met" if self.measured.value >= self.bar - 1e-9 and not self.overlap else "missed"

    @property
    def remark(self) -> str:
        """What the verdict does not say: why it was missed, or that it is not certain."""
        if self.measured is None or self.bar is None:
            return ""
        if self.overlap:
            return "the intervals overlap"
        return "the interval reaches across the bar" if self.measured.low < self.bar <= self.measured.high else ""


def best_router(results: Results) -> Entry:
    """The best of the MoR routers in the default setting, chosen with hindsight; ``mor`` if there is none."""
    routers = [entry for entry in results.entries(DEFAULT) if entry.shown.group == MOR]
    return results.best(routers) or Entry(DEFAULT, "mor")


def check_claims(results: Results, weak: Collection[str] = ()) -> list[Claim]:
    """What the benchmark is to show, of the best router.

    ``weak`` names the weak clients of the setting of that name, which may lose; if it names none, no client may.
    """
    best = best_router(results)
    name = best.shown.label

    def minus(other: Entry, bar: float | None, quantity: str = MEAN, *, apart: bool = False) -> Claim:
        text = f"{_SAY[quantity]}: {name} minus {other.shown.label}"
        return _claim(text, results.paired(best, other, quantity), bar, apart=apart)

    of = {method: Entry(DEFAULT, method) for method in METHODS}
    a, b = ([entry for entry in of.values() if entry.shown.group == group] for group in (AVERAGING_A, AVERAGING_B))
    found = [minus(of[method], 0.15, apart=True) for method in ("uniform", "min", "median", "static", "random")]
    found += [minus(of["variance"], None), *(minus(m, 0.10, apart=True) for m in b), *(minus(m, None) for m in a)]
    for other in (of["centralised"], of["oracle"]):
        text = f"{_SAY[MEAN]}: {name} as a share of {other.shown.label}"
        found.append(_claim(text, results.paired(best, other, MEAN), 0.95, three_digits))
    found += [minus(other, 0.0, WORST, apart=True) for other in b]
    found += [minus(of["base"], 0.0, _UNSEEN), minus(of["uniform"], 0.0, _UNSEEN, apart=True)]
    for other in a:
        text = f"uplink bytes a client: {other.shown.label} over {name}"
        found.append(_claim(text, results.paired(other, best, "up_bytes.mean"), 100, times))
        text = f"mean preference at those bytes: {name} minus {other.shown.label}"
        found.append(_claim(text, results.paired(best, other, MEAN), 0.0))
    return found + _robust(results, weak)


_UNSEEN = f"preference.{HELD_OUT}"
_SAY = {MEAN: "mean preference", WORST: "worst client", _UNSEEN: "held-out preference"}


def _robust(results: Results, weak: Collection[str]) -> list[Claim]:
    """What MoR loses in a setting against the default, the same router in both."""
    losses = [("hostile", MEAN, "mean preference", 0.03), ("inflated", MEAN, "mean preference", 0.01)]
    spared = [client for client in results.clients("weak") if client not in weak]
    losses += [("weak", f"preference.{client}", f"preference of {words(client)}", 0.01) for client in spared]
    found = [
        _claim(f"{name} minus default: MoR, {say}", results.paired(Entry(name, "mor"), Entry(DEFAULT, "mor"), quantity), -most)
        for name, quantity, say, most in losses
    ]
    unmeasured = Claim("weak minus default: MoR, preference of each client that is not weak", -0.01, None)
    return found if spared else [*found, unmeasured]


def _claim(
    text: str,
    pair: tuple[Estimate, Estimate] | None,
    bar: float | None,
    show: Callable[[float], str] = signed,
    *,
    apart: bool = False,
) -> Claim:
    """The difference of ``pair``, or its ratio where no sign is shown; ``apart``: their intervals must not overlap."""
    if pair is None or (show is not signed and not pair[1].draws.all()):
        return Claim(text, bar, None, apart)
    first, second = pair
    overlap = apart and first.interval(CONFIDENCE).low <= second.interval(CONFIDENCE).high
    measured = first - second if show is signed else Estimate(first.value / second.value, first.draws / second.draws)
    return Claim(text, bar, measured.interval(CONFIDENCE), apart, overlap, show)
