"""MLflow's store: its client, the experiment, runs that are found there and their pages.

Runs go where ``MLFLOW_TRACKING_URI`` says, else to MLflow's own defaults (``mlflow.db`` and ``mlruns/`` in the project's
folder), so that a bare ``mlflow ui`` there shows them. MLflow takes 3 s to import, so it is imported at first use.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "mor"
RESULTS = "results"  # the parent's artifact folder of what an execution ended with
ADDRESS_VARIABLE = "MOR_MLFLOW_UI"
ADDRESS = "http://127.0.0.1:5000"  # where `mlflow ui` answers unless told otherwise


@cache
def mlflow_client() -> MlflowClient:
    """The store's client, told to be quiet about migrations and copies."""
    logging.getLogger("alembic").setLevel(logging.WARNING)  # a new store reports each of its migrations
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient()


@cache
def experiment() -> str:
    """Id of the experiment that all runs of this process belong to, made if it is not there.

    Make it before several processes do it at once.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    found = mlflow_client().get_experiment_by_name(name)
    return str(found.experiment_id if found else mlflow_client().create_experiment(name))


@contextmanager
def quiet_mlflow() -> Iterator[None]:
    """MLflow without progress bars and hints, which tell a night's reader nothing."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def search_runs(query: str, *, deleted: bool = False) -> list[Run]:
    """The runs of the experiment that fit a query in MLflow's language, newest first; ``deleted`` adds those in the trash."""
    from mlflow import search_runs

    view = 3 if deleted else 1  # MLflow's ViewType: ALL, ACTIVE_ONLY
    order = ["attributes.start_time DESC"]
    found: list[Run] = search_runs([experiment()], query, view, order_by=order, output_format="list")
    return found


def keep_files(run_id: str, files: Iterable[Path], tags: Mapping[str, str]) -> None:
    """Keep copies of files in a run's ``results`` folder, in place of older ones, and set its tags."""
    for file in files:
        mlflow_client().log_artifact(run_id, str(file), RESULTS)
    for name, value in tags.items():
        mlflow_client().set_tag(run_id, name, value)


def fetch_results(run_id: str, folder: Path) -> Path:
    """Copy an execution's results below ``folder``; returns where they lie, an empty folder if it has none."""
    if mlflow_client().list_artifacts(run_id, RESULTS):
        return Path(mlflow_client().download_artifacts(run_id, RESULTS, str(folder)))
    return folder


def run_address(run: Run) -> str:
    """Address of a run's page in MLflow's user interface."""
    return f"{interface()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def interface() -> str:
    """Where MLflow's user interface answers: ``MOR_MLFLOW_UI``, unless it is ``http://127.0.0.1:5000``."""
    return os.environ.get(ADDRESS_VARIABLE, ADDRESS).rstrip("/")
