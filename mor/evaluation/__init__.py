"""How good the aligned policy is, and how that is shown.

1. ``statistics``  bootstrap intervals: of a mean, of a paired difference, over clients;
2. ``metrics``     the raw evaluation -> the numbers of ``reports/metrics.json``;
3. ``plots``       numbers -> figures, one style;
4. ``report``      everything -> one HTML page that needs no network.

``comparison``, ``comparison_tables`` and ``comparison_report`` do the same for many methods, settings and seeds at once,
from one tidy CSV.
"""
