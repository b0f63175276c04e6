"""Every night by itself. Ctrl-C ends it and all that it started.

A Prefect server (unless `PREFECT_API_URL` names one), MLflow's UI (unless `MLFLOW_TRACKING_URI` is a server's), the
deployment of `prefect.yaml` and a worker; whatever of these ends is started again. Both ask for the login of `.prefect/login`.
"""

from __future__ import annotations

import os
import threading

from rich.console import Console

from mor.config import load_params
from tasks.project import runtime

console = Console(stderr=True, soft_wrap=True)


def schedule() -> None:
    """Start everything, say where it is, and wait for Ctrl-C or a SIGTERM."""
    from tasks.project import guard, services
    from tasks.tracking import runs as tracking

    services.heed_signals()
    nightly = load_params().nightly
    services.webhook()  # a mistake in its address is reported now, and not at night
    prefect, mlflow = os.environ.get("PREFECT_API_URL"), os.environ.get("MLFLOW_TRACKING_URI", "")
    mlflow = mlflow if mlflow.startswith("http") else ""
    with services.alone():
        services.end_leftovers()
        own = [*([] if prefect else [services.prefect_server()]), *([] if mlflow else [services.mlflow_ui()])]
        os.environ.update(services.PREFECT)
        if not prefect:
            os.environ.update({"PREFECT_API_URL": f"{services.PREFECT_UI}/api", guard.CLIENT_LOGIN: guard.login()})
        os.environ.setdefault(tracking.ADDRESS_VARIABLE, runtime.without_login(mlflow) or services.MLFLOW_UI)
        with services.supervise(own):
            for service in own:
                services.wait_for(service)
            if not prefect:
                services.close_runs()
            services.register_deployment()
            with services.supervise([services.worker()]):
                console.print(
                    f"Prefect: {runtime.without_login(os.environ['PREFECT_API_URL']).removesuffix('/api')}", highlight=False
                )
                console.print(f"MLflow:  {runtime.without_login(mlflow) or services.MLFLOW_UI}", highlight=False)
                if own:
                    console.print(f"Login:   {guard.login_hint()}", highlight=False)
                console.print(f"Nights:  {nightly.cron} ({nightly.timezone}); Ctrl-C ends it", highlight=False)
                threading.Event().wait()
