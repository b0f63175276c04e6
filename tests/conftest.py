"""Tests meet no server, no display and no store of the user's own."""

from __future__ import annotations

import os
import signal

import pytest

for name in (
    *("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_KEY"),
    *("MLFLOW_TRACKING_URI", "MOR_PARENT_RUN_ID", "MOR_WEBHOOK", "DVC_STAGE"),
):
    os.environ.pop(name, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job, as all that tests start would
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core: more threads would wait for each other
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import tasks.project.decorators  # noqa: E402, F401  telemetry off, before any library is imported

LONGEST = ("test_smoke.py", "test_kills.py", "test_guard.py")  # begin first, so that no process is left with one at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
