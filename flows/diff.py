"""How two runs differ: ``python -m flows.diff A B`` (``make compare A=... B=...``).

A and B are nights (2026-01-02), ids of MLflow runs or their beginnings, or names of runs. Without them: the last two nights.
With one: that night and the one before it.
"""

from __future__ import annotations

import argparse

from tasks.diff import compare_runs
from tasks.runtime import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.diff", description=__doc__)
    parser.add_argument("a", nargs="?", metavar="A", help="the older run")
    parser.add_argument("b", nargs="?", metavar="B", help="the newer run")
    given = parser.parse_args()
    main(compare_runs, given.a, given.b)
