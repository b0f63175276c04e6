"""How a stage runs: Prefect's decorators when a server is there, plain functions otherwise, one command line, one ``main``.

Plain ``dvc repro`` must not pay for Prefect (a flow without a server starts one of its own, about 10 s a process).
So ``flow`` and ``task`` are Prefect's only where ``PREFECT_API_URL`` is set, and hand the function back unchanged
where it is not; Prefect is then not even imported, and options such as ``retries`` have no effect. Results are never
persisted or cached by Prefect: DVC alone decides what is stale.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload
from urllib.parse import urlsplit

from mor.config import TRY_AGAIN, ConfigError, Unavailable, UserError, load_params
from mor.text import told
from tasks.project import paths

if TYPE_CHECKING:
    import typer

ERROR_VARIABLE = "MOR_ERROR"  # the file into which a stage of a night writes what may be told of its error

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


class Untold(RuntimeError):
    """Stands for an error whose text may hold somebody's data; says its kind and place."""

    public = True  # see mor.text.told


def _discreet(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` so that Prefect, which keeps the text and the traceback of an error, learns what may be told."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as error:
            if isinstance(error, UserError) or getattr(error, "public", False):
                raise
            print("".join(traceback.format_tb(error.__traceback__)), end="", file=sys.stderr)  # lines of code, no values
            raise Untold(f"{told(error)}; without Prefect it says its text: unset PREFECT_API_URL and run it again") from None

    return call


def stage(function: Callable[..., Any]) -> None:
    """The command line of a stage: its function becomes a flow once the arguments are known to be right."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        flow(function)(*arguments, **options)

    command(run)


def command(function: Callable[..., Any]) -> None:
    """Run ``function`` with what the words after ``python -m <its module>`` say, and end the process."""
    module = inspect.unwrap(function).__globals__
    command_line(function)(prog_name=f"python -m {getattr(module['__spec__'], 'name', module['__name__'])}")


def command_line(function: Callable[..., Any], **settings: Any) -> typer.Typer:
    """The command line of ``function``: its parameters are the options, its module's docstring is the help.

    ``settings`` go to Typer. ``--help`` ends with 0 and a mistake with 2 before anything starts; import what takes long inside
    ``function``. The rest is ``main``'s.
    """
    import typer

    @functools.wraps(function)
    def run(*positional: Any, **options: Any) -> None:
        main(function, *positional, **options)

    described: dict[str, Any] = {
        "help": inspect.unwrap(function).__globals__["__doc__"],
        "context_settings": {"help_option_names": ["-h", "--help"]} | settings.pop("context_settings", {}),
    }
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command(**described | settings)(run)
    return app


def known_client(name: str) -> str:
    """``name``, if that is one of ``params.yaml``'s clients; raises ``ConfigError`` that lists them."""
    clients = load_params(paths.PARAMS).clients
    if name not in clients:
        raise ConfigError(f"{name!r} is no client of {paths.PARAMS}, which has {', '.join(clients)}")
    return name


def without_login(address: str) -> str:
    """An address as it may be printed: without a login in it."""
    return urlsplit(address)._replace(netloc=urlsplit(address).netloc.rpartition("@")[2]).geturl()


def main(flow_function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Run a stage. A mistake in the settings or the data is one red message and exit code 1; other errors propagate.

    Where something is unavailable, such as a client below the quorum, the code is 75: it is worth trying again.

    Ctrl-C ends it with code 130 and without a traceback; what it had checkpointed is picked up by the next run.
    """
    try:
        _use_threads(load_params(paths.PARAMS).threads)
        _find_server()
        flow_function(*arguments, **options)
    except UserError as error:
        from rich.console import Console

        _leave_word(error)
        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
        sys.exit(TRY_AGAIN if isinstance(error, Unavailable) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _leave_word(error)
        raise


def _leave_word(error: Exception) -> None:
    """Tell the night what may be told of the error that ends its stage."""
    if file := os.environ.get(ERROR_VARIABLE):
        Path(file).write_text(told(error), encoding="utf-8")


def _find_server() -> None:
    """Say where the Prefect server that is to be used can't be reached or refuses us; its client ends in a traceback.

    Raises ``Unavailable`` where it does not answer, ``UserError`` where it wants another login.
    """
    if not (address := os.environ.get("PREFECT_API_URL")):
        return
    import httpx

    login = os.environ.get("PREFECT_API_AUTH_STRING", "")
    credentials = httpx.BasicAuth(*login.split(":", 1)) if ":" in login else None
    try:
        answer = httpx.get(f"{address.rstrip('/')}/version", timeout=10, auth=credentials)
    except httpx.TransportError as error:
        raise Unavailable(
            f"PREFECT_API_URL={without_login(address)}: no Prefect server answers there ({error}); "
            "start it, or unset the variable"
        ) from None
    if answer.status_code == httpx.codes.UNAUTHORIZED and not os.environ.get("PREFECT_API_KEY"):
        raise UserError(
            f"PREFECT_API_URL={without_login(address)}: the server there refuses "
            f"{'the login of PREFECT_API_AUTH_STRING' if login else 'to be used without a login'}; set PREFECT_API_AUTH_STRING "
            f"to its <user>:<password> (for the server of `mor nightly`: the content of {paths.PREFECT_HOME}/login)"
        )


def _use_threads(threads: int) -> None:
    """Bound the threads of the libraries that are still to be imported, and of torch if it is there already."""
    if threads == 0:
        return
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
