"""Numbers for people, in their units."""

from __future__ import annotations


def in_bytes(number: float) -> str:
    """``1234567`` -> ``1.23 MB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 999.5:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def in_time(number: float) -> str:
    """Seconds for people: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if number < 9.95:
        return f"{number:.1f} s"
    whole = round(number)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def in_points(share: float) -> str:
    """A difference of shares in percentage points: ``-0.031`` -> ``−3``."""
    return f"{round(100 * share):+d}".replace("-", "−") if round(100 * share) else "0"
