"""Every night by itself: ``python -m flows.schedule`` (``make nightly``). Ctrl-C ends it and all that it started.

A Prefect server (unless ``PREFECT_API_URL`` names one), MLflow's UI (unless ``MLFLOW_TRACKING_URI`` is a server's), the
deployment of ``prefect.yaml`` and a worker; whatever of these ends is started again.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from rich.console import Console

from mor.config import load_params
from tasks import runtime, services, tracking

console = Console(stderr=True)


def schedule() -> None:
    """Start everything, say where it is, and wait for Ctrl-C or a SIGTERM."""
    nightly = load_params().nightly
    prefect, mlflow = os.environ.get("PREFECT_API_URL"), os.environ.get("MLFLOW_TRACKING_URI", "")
    mlflow = mlflow if mlflow.startswith("http") else ""
    with services.alone():
        services.end_leftovers()
        own = [*([] if prefect else [services.prefect_server()]), *([] if mlflow else [services.mlflow_ui()])]
        os.environ.update(services.PREFECT | {"PREFECT_API_URL": prefect or f"{services.PREFECT_UI}/api"})
        os.environ.setdefault(tracking.ADDRESS_VARIABLE, mlflow or services.MLFLOW_UI)
        with services.supervise(own):
            for service in own:
                services.wait_for(service)
            if not prefect:
                services.close_runs()
            services.register_deployment()
            with services.supervise([services.worker()]):
                console.print(f"Prefect: {os.environ['PREFECT_API_URL'].removesuffix('/api')}", highlight=False)
                console.print(f"MLflow:  {mlflow or services.MLFLOW_UI}", highlight=False)
                console.print(f"Nights:  {nightly.cron} ({nightly.timezone}); Ctrl-C ends it", highlight=False)
                threading.Event().wait()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, _interrupt)
    runtime.main(schedule)
