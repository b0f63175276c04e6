"""Does MoR's router earn its place? Seeds 0 to 2, routed against uniform, as DVC experiments.

``python -m benchmarks.seeds`` runs what is missing (`dvc exp run --temp`, one experiment at a time; shared stages come
from DVC's cache), writes ``benchmarks/results/seeds.csv`` and prints the tables of the README. Runs that exist are not
repeated: name them in ``dvc exp show``, drop one with ``dvc exp remove``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "seeds.csv"
SUITES = ("documents", "medical", "scenes", "mean", "worst", "held_out")


def name(seed: int, router: str) -> str:
    """The experiment's name."""
    return f"{router}-seed-{seed}"


def git(*words: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


def existing() -> dict[str, str]:
    """Experiments of the current commit: name to git reference, as DVC keeps them."""
    head = git("rev-parse", "HEAD").strip()
    references = git("for-each-ref", "--format=%(refname)", f"refs/exps/{head[:2]}/{head[2:]}").split()
    return {reference.rsplit("/", 1)[1]: reference for reference in references}


def run(seed: int, router: str) -> None:
    """One experiment in a copy of the project, recorded in this project's MLflow store."""
    here = Path.cwd()
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{here / 'mlflow.db'}"} | dict(os.environ)
    settings = ["-S", f"seed={seed}", "-S", f"router.kind={router}"]
    subprocess.run(["dvc", "exp", "run", "--temp", "--name", name(seed, router), *settings], check=True, env=environment)


def metrics(experiment: str) -> dict[str, Any]:
    """``reports/metrics.json`` of an experiment."""
    found: dict[str, Any] = json.loads(git("show", f"{existing()[experiment]}:reports/metrics.json"))
    return found


def rows(seed: int, router: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Tidy rows: one a model, measure and suite."""
    return [
        {"seed": seed, "router": router, "model": model, "measure": measure, "suite": suite, **value}
        for model in ("base", "aligned")
        for measure, suites in found["models"][model].items()
        for suite, value in suites.items()
    ]


def table(tidy: list[dict[str, Any]], measure: str) -> str:
    """Markdown: base, routed and uniform for every seed."""
    value = {(r["seed"], r["router"], r["model"], r["suite"]): float(r["value"]) for r in tidy if r["measure"] == measure}
    seeds, routers = sorted({key[0] for key in value}), sorted({key[1] for key in value})
    lines = [f"| {measure} | " + " | ".join(SUITES) + " |", "|---" * (len(SUITES) + 1) + "|"]
    for seed in seeds:
        shown = [("base", routers[0], "base")] + [(router, router, "aligned") for router in routers]
        for label, router, model in shown:
            cells = [
                f"{value[seed, router, model, suite]:.3f}" if (seed, router, model, suite) in value else "" for suite in SUITES
            ]
            lines.append(f"| seed {seed}, {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--routers", nargs="+", default=["federated", "uniform"])
    given = parser.parse_args()
    tidy: list[dict[str, Any]] = []
    for seed in given.seeds:
        for router in given.routers:
            if name(seed, router) not in existing():
                run(seed, router)
            tidy += rows(seed, router, metrics(name(seed, router)))
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(tidy[0]))
        writer.writeheader()
        writer.writerows(tidy)
    print(table(tidy, "preference"), table(tidy, "accuracy"), sep="\n\n")


if __name__ == "__main__":
    main()
