"""Every night by itself. Ctrl-C ends it and all that it started.

A Prefect server (unless `PREFECT_API_URL` names one), MLflow's UI (unless `MLFLOW_TRACKING_URI` is a server's), the
deployment of `prefect.yaml` and a worker; whatever of these ends is started again. Both ask for the login of `.prefect/login`.
"""

from __future__ import annotations

import os
import threading

from rich.console import Console

from mor.config import load_params
from tasks.project import command_line

console = Console(stderr=True, soft_wrap=True)


def nightly() -> None:
    """Start everything, say where it is, and wait for Ctrl-C or a SIGTERM."""
    from tasks.project import guard, processes, servers
    from tasks.project.webhook import webhook_address
    from tasks.tracking import store

    processes.heed_signals()
    settings = load_params().nightly
    webhook_address()  # a mistake in its address is reported now, and not at night
    prefect, mlflow = os.environ.get("PREFECT_API_URL"), os.environ.get("MLFLOW_TRACKING_URI", "")
    mlflow = mlflow if mlflow.startswith("http") else ""
    with servers.only_supervisor():
        processes.end_services()
        own = [*([] if prefect else [servers.supervised_prefect()]), *([] if mlflow else [servers.mlflow_ui()])]
        os.environ.update(servers.PREFECT_SETTINGS)
        if not prefect:
            os.environ.update({"PREFECT_API_URL": f"{servers.PREFECT_UI}/api", guard.CLIENT_LOGIN: guard.login()})
        os.environ.setdefault(store.ADDRESS_VARIABLE, command_line.without_login(mlflow) or servers.MLFLOW_UI)
        with processes.supervise(own):
            for service in own:
                servers.wait_for(service)
            if not prefect:
                servers.close_runs()
            servers.register_deployment()
            with processes.supervise([servers.worker()]):
                address = command_line.without_login(os.environ["PREFECT_API_URL"]).removesuffix("/api")
                console.print(f"Prefect: {address}", highlight=False)
                console.print(f"MLflow:  {command_line.without_login(mlflow) or servers.MLFLOW_UI}", highlight=False)
                if own:
                    console.print(f"Login:   {guard.login_hint()}", highlight=False)
                console.print(f"Nights:  {settings.cron} ({settings.timezone}); Ctrl-C ends it", highlight=False)
                threading.Event().wait()
