"""The command lines: what an entry point is told, which server and how many threads it uses, and how it ends."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mor.config import load_params
from mor.errors import TRY_AGAIN, ConfigError, Unavailable, UserError
from mor.text import public_message
from tasks.project import paths
from tasks.project.decorators import flow

if TYPE_CHECKING:
    import typer

ERROR_VARIABLE = "MOR_ERROR"  # the file into which a stage of a night writes what is public of its error


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


def main(flow_function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Run a stage. A mistake in the settings or the data is one red message and exit code 1; other errors propagate.

    Where something is unavailable, such as a client below the quorum, the code is 75: it is worth trying again.

    Ctrl-C ends it with code 130 and without a traceback; what it had checkpointed is picked up by the next run.
    """
    try:
        _use_threads(load_params(paths.PARAMS).threads)
        _check_server()
        flow_function(*arguments, **options)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if file := os.environ.get(ERROR_VARIABLE):
            Path(file).write_text(public_message(error), encoding="utf-8")
        if not isinstance(error, UserError):
            raise
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
        sys.exit(TRY_AGAIN if isinstance(error, Unavailable) else 1)


def known_client(name: str) -> str:
    """``name``, if that is one of ``params.yaml``'s clients; raises ``ConfigError`` that lists them."""
    clients = load_params(paths.PARAMS).clients
    if name not in clients:
        raise ConfigError(f"{name!r} is no client of {paths.PARAMS}, which has {', '.join(clients)}")
    return name


def without_login(address: str) -> str:
    """An address as it may be printed: without a login in it."""
    return urlsplit(address)._replace(netloc=urlsplit(address).netloc.rpartition("@")[2]).geturl()


def _check_server() -> None:
    """Say where the Prefect server that is to be used can't be reached or refuses us; its client ends in a traceback.

    Raises ``Unavailable`` where it does not answer, ``UserError`` where it wants another login.
    """
    if not (address := os.environ.get("PREFECT_API_URL")):
        return
    import httpx

    login, where = os.environ.get("PREFECT_API_AUTH_STRING", ""), f"PREFECT_API_URL={without_login(address)}"
    credentials = httpx.BasicAuth(*login.split(":", 1)) if ":" in login else None
    try:
        answer = httpx.get(f"{address.rstrip('/')}/version", timeout=10, auth=credentials)
    except httpx.TransportError as error:
        fix = "start it, or unset the variable"
        raise Unavailable(f"{where}: no Prefect server answers there ({error}); {fix}") from None
    if answer.status_code == httpx.codes.UNAUTHORIZED and not os.environ.get("PREFECT_API_KEY"):
        refused = "the login of PREFECT_API_AUTH_STRING" if login else "to be used without a login"
        raise UserError(
            f"{where}: the server there refuses {refused}; set PREFECT_API_AUTH_STRING "
            f"to its <user>:<password> (for the server of `mor nightly`: the content of {paths.PREFECT_HOME}/login)"
        )


def _use_threads(threads: int) -> None:
    """Bound the threads of the libraries that are still to be imported, and of torch if it is there already."""
    if threads == 0:
        return
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
