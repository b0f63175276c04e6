"""How good the aligned policy is.

1. ``statistics``  bootstrap intervals: of a mean, of a paired difference, over clients;
2. ``metrics``     the raw evaluation -> the numbers of ``reports/metrics.json``;
3. ``gate``        whether a candidate may become champion.

Drawing and pages are in ``tasks.reports``, many methods at once in ``benchmarks``.
"""
