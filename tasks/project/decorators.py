"""Prefect's ``flow`` and ``task`` where a server is there, plain functions otherwise.

Plain ``dvc repro`` must not pay for Prefect (a flow without a server starts one of its own, about 10 s a process).
So ``flow`` and ``task`` are Prefect's only where ``PREFECT_API_URL`` is set, and hand the function back unchanged
where it is not; Prefect is then not even imported, and options such as ``retries`` have no effect. Results are never
persisted or cached by Prefect: DVC alone decides what is stale.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, overload

from mor.errors import UserError
from mor.text import public_message

# TRL still asks Transformers by the old names; nothing that a user could act on.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

P = ParamSpec("P")
R = TypeVar("R")

# Read by the libraries when they are first imported, hence set here and not in `main`.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # an error is reported once, by Python, and not by every flow and task it passes
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}.items():
    os.environ.setdefault(_name, _value)


@overload
def task(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def task(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def task(function: Any = None, /, **options: Any) -> Any:
    """``@task`` or ``@task(retries=2)``: a Prefect task where a server is there, else the function itself."""
    return _decorate("task", function, options)


@overload
def flow(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def flow(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def flow(function: Any = None, /, **options: Any) -> Any:
    """``@flow`` or ``@flow(name="align")``: a Prefect flow where a server is there, else the function itself."""
    return _decorate("flow", function, options)


def _decorate(kind: Literal["task", "flow"], function: Any, options: dict[str, Any]) -> Any:
    if not os.environ.get("PREFECT_API_URL"):
        return function if function is not None else lambda plain: plain
    import prefect
    from prefect.cache_policies import NO_CACHE

    own: dict[str, Any] = {"persist_result": False, "log_prints": False}
    if kind == "task":
        own["cache_policy"] = NO_CACHE
    elif stage := os.environ.get("DVC_STAGE"):  # "dvc.yaml:reward@documents"
        own["flow_run_name"] = stage.rpartition(":")[2]
    if function is None:
        return lambda plain: getattr(prefect, kind)(_discreet(plain), **(own | options))
    return getattr(prefect, kind)(_discreet(function), **(own | options))


class WithheldError(RuntimeError):
    """Stands for an error whose text may hold somebody's data; says its kind and place."""

    public = True  # see mor.text.public_message


def _discreet(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` so that Prefect, which keeps the text and the traceback of an error, learns only what is public."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:
            if isinstance(error, UserError) or getattr(error, "public", False):
                raise
            print("".join(traceback.format_tb(error.__traceback__)), end="", file=sys.stderr)  # lines of code, no values
            way = "without Prefect it says its text: unset PREFECT_API_URL and run it again"
            raise WithheldError(f"{public_message(error)}; {way}") from None

    return call
