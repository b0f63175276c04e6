"""MoR against what one would do instead: ``python -m flows.compare`` (``make benchmark``).

Without options the headline: every seed of ``params.yaml`` and the methods of the headline table. What was measured
before is not measured again; an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import argparse

from mor.baselines.catalogue import headline, methods, settings
from mor.config import load_params
from mor.evaluation.comparison import DEFAULT
from tasks.compare import Cell, compare, report_comparison
from tasks.runtime import main


def cells(given: argparse.Namespace) -> list[Cell]:
    """The results that are asked for, seed by seed."""
    params = load_params()
    if given.search:
        plan = params.compare
        return [Cell(DEFAULT, plan.search_seed, m, f, True) for m in given.methods for f in plan.search_factors]
    seeds = given.seeds if given.seeds is not None else params.compare.seeds
    seeds = seeds[:1] if given.quick else seeds
    return [Cell(setting, seed, method) for seed in seeds for setting in given.settings for method in given.methods]


def benchmark(given: argparse.Namespace) -> None:
    """Measure what is missing, then write the report."""
    report_comparison(compare(cells(given), given.jobs))


if __name__ == "__main__":
    params = load_params()
    parser = argparse.ArgumentParser(prog="python -m flows.compare", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first seed alone")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those in params.yaml")
    for name, known, default in (
        ("method", methods(params.clients), headline(params.clients)),
        ("setting", settings(params.clients, params.base), [DEFAULT]),
    ):
        parser.add_argument(
            f"--{name}s", nargs="+", default=list(default), choices=list(known), metavar=name.upper(), help=", ".join(known)
        )
    parser.add_argument("--search", action="store_true", help="search the methods' learning rates on the search seed instead")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time; the cores are shared out among them")
    main(benchmark, parser.parse_args())
