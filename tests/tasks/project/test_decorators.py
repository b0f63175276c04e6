"""Stages with and without a Prefect server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

from tasks.project import decorators

Run = Callable[..., subprocess.CompletedProcess[str]]
STAGE = """
import sys
from tasks.project.command_line import main
from tasks.project.decorators import flow, task

@task(retries=2)
def double(x: int) -> int:
    return 2 * x

@flow(name="stage")
def stage(x: int) -> None:
    print(double(x))

"""


def test_stage_without_a_server_runs_and_never_imports_prefect_mlflow_or_torch(run_python: Run) -> None:
    slow = "print(sorted({'prefect', 'mlflow', 'torch', 'transformers'} & set(sys.modules)))"
    result = run_python(f"{STAGE}main(stage, 21)\n{slow}")
    assert result.stdout.split("\n")[:2] == ["42", "[]"], result.stderr


def test_with_a_server_the_decorators_are_prefects_and_keep_no_results(run_python: Run) -> None:
    check = "print(type(stage).__name__, type(double).__name__, double.retries, stage.persist_result, double.persist_result)"
    result = run_python(STAGE + check, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert result.stdout.strip() == "Flow Task 2 False False", result.stderr


def test_decorators_hand_back_the_function_itself() -> None:
    def function() -> int:
        return 1

    assert decorators.flow(function) is function
    assert decorators.task(retries=3)(function) is function
