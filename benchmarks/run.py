"""Run the benchmark: measure what is missing, all cores kept busy, and report what there is.

A finished method is rows of ``benchmarks/results/benchmark.csv`` and is not repeated while its settings stay the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.catalogue import SEARCH, Federation
from benchmarks.claims import Claim, check_claims
from benchmarks.jobs import ROWS
from benchmarks.plan import Case, JobPlan, best_factors, plan_cases, unsearched, up_to_date
from benchmarks.processes import Job, run_jobs
from benchmarks.report import write_benchmark_page
from benchmarks.results import Measurement, Results, read_results, write_results
from benchmarks.settings import with_changes
from benchmarks.tables import console_tables
from benchmarks.workspace import LOG, ROOT
from mor.config import Params
from mor.errors import UserError
from tasks.project import paths
from tasks.tracking import store

RESULTS = Path("benchmarks") / "results" / "benchmark.csv"
EXPERIMENT = "mor-benchmark"
WIDTH = 150  # columns of the widest table; a narrower terminal wraps its lines instead of hiding figures


def measure_cases(params: Params, cases: Sequence[Case], at_once: int) -> list[Measurement]:
    """Bring the results of ``cases`` up to date, ``at_once`` jobs at a time; returns all results that are up to date.

    Raises ``UserError`` for clients whose data the benchmark can't make, and where jobs failed, after all others are done.
    """
    if strangers := sorted(params.clients.keys() - params.fedvqa.styles.keys()):
        raise UserError(
            f"{paths.PARAMS}: the benchmark makes the data of {', '.join(params.fedvqa.styles)} (fedvqa.styles), "
            f"and none for {', '.join(strangers)}: take them out of clients for this run"
        )
    console = Console(stderr=True)
    params = _share_cores(params, at_once)
    rows = read_results(RESULTS) if RESULTS.exists() else []
    best = best_factors(params, up_to_date(params, rows))
    _tell_unsearched([case.method for case in cases if not case.search], best, console)
    cases = [case if case.search else replace(case, factor=best.get(case.method, 1.0)) for case in cases]
    plan = plan_cases(params, cases, rows)
    there = f"{len(cases) - len(plan.cases)} of {len(cases)} results are there"
    console.print(f"{there}; {len(plan.jobs)} units of work to do, {at_once} at a time")
    rows = _work_off(plan, at_once, rows, console)
    shown = up_to_date(params, rows)
    if stale := {_identity(row) for row in rows} - {_identity(row) for row in shown}:
        console.print(f"{len(stale)} results in {RESULTS} were measured with other settings; the report leaves them out")
    return shown


def _tell_unsearched(methods: Iterable[str], best: Mapping[str, float], console: Console) -> None:
    """Name the methods that train with the settings' own learning rate because no search chose one, and what searches it."""
    if missing := unsearched(methods, best):
        searched = " ".join(dict.fromkeys(missing.values()))
        console.print(
            f"no learning rate was searched with these settings for {', '.join(missing)}: that of {paths.PARAMS} is taken; "
            f"`mor benchmark --search --methods {searched}` measures it anew", style="yellow", soft_wrap=True,
        )  # fmt: skip


def _share_cores(params: Params, at_once: int) -> Params:
    """``params`` with each job's part of the cores; says the same, and where runs are recorded, to the jobs' processes."""
    threads = max(1, (os.cpu_count() or 1) // at_once)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    os.environ["MLFLOW_EXPERIMENT_NAME"] = EXPERIMENT
    return with_changes(params, {"threads": threads})


def _work_off(plan: JobPlan, at_once: int, rows: list[Measurement], console: Console) -> list[Measurement]:
    """Do all jobs, each result kept as soon as it is there; returns ``rows`` with the new ones in place of older ones."""
    if plan.jobs:
        store.experiment()
    began = time.perf_counter()

    def done(job: Job, left: int) -> None:
        nonlocal rows
        said = ""
        if job.name in plan.cases:
            fresh = read_results(job.workspace.folder / ROWS)
            rows = [row for row in rows if _identity(row) != _identity(fresh[0])] + fresh
            write_results(RESULTS, rows)
            own = [row.value for row in fresh if row.measure == "preference" and row.suite in plan.params.clients]
            said = f": preference {sum(own) / len(own):.3f}, worst client {min(own):.3f}"
        console.print(f"[dim]{(time.perf_counter() - began) / 60:6.1f} min[/] {job.name}{said} [dim]({left} left)[/]")

    failures = run_jobs(list(plan.jobs.values()), at_once, done)
    for failure in failures:
        console.print(failure, style="red", markup=False)
    if failures:
        raise UserError(f"{len(failures)} units failed; {LOG} in their folders below {ROOT} says why. Run again.")
    return rows


def _identity(row: Measurement) -> tuple[Any, ...]:
    """Which result a row belongs to; a later one takes its place."""
    return row.setting, row.method, row.seed, row.learning_rate if row.setting == SEARCH else None


def report_results(known: Mapping[str, Federation], rows: Sequence[Measurement]) -> tuple[Results, list[Claim]]:
    """Figures, page and the tables on the terminal; returns the results and what became of the claims.

    ``known`` are the settings' federations, which say who is weak and what changes.
    """
    results = Results(rows)
    checked = check_claims(results, weak=known["weak"].backbones)
    changes = {name: federation.change for name, federation in known.items() if federation.change}
    write_benchmark_page(results, checked, changes, paths.BENCHMARK_PLOTS, paths.BENCHMARK_REPORT)
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(console_tables(results, checked))
    console.print(f"Results: {RESULTS}; report: {paths.BENCHMARK_REPORT}; runs: experiment {EXPERIMENT} in `mor ui`")
    return results, checked
