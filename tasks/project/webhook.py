"""The webhook that is told how nights end: ``MOR_WEBHOOK``.

It is believed in nothing: no redirect is followed and no answer read. Its address appears nowhere.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Mapping

import httpx
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from mor.errors import ConfigError
from tasks.project import guard

VARIABLE = "MOR_WEBHOOK"  # its address, which is a secret: who knows it can write there
PATIENCE = 20.0  # seconds for all tries together


def webhook_address() -> str:
    """The address of ``MOR_WEBHOOK``, empty for none; raises ``ConfigError``, which does not repeat it."""
    address = os.environ.get(VARIABLE, "")
    if not address:
        return ""
    try:
        where = httpx.URL(address)
    except httpx.InvalidURL:
        where = httpx.URL("")
    if where.host and (where.scheme == "https" or (where.scheme == "http" and where.host in (*guard.HOSTS, "::1"))):
        return address
    raise ConfigError(f"{VARIABLE}: expected an https:// address (http:// on this machine alone); mend or unset it")


def notify(event: Mapping[str, str]) -> None:
    """Post ``event`` as JSON to the webhook, if there is one.

    One that does not take it within 20 s is warned of on stderr and changes nothing else.
    """
    try:
        address = webhook_address()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return
    if not address:
        return
    failure = [f"no answer in {PATIENCE:g} s"]
    sender = threading.Thread(target=_post, args=(address, dict(event), failure), daemon=True)
    sender.start()
    sender.join(PATIENCE)
    if failure:
        print(f"The webhook of {VARIABLE} did not take {dict(event)}: {failure[-1]}", file=sys.stderr)


def _post(address: str, event: dict[str, str], failure: list[str]) -> None:
    """Three tries; leaves the reason in ``failure``, which is empty where one succeeded."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells the address of every request
    try:
        for attempt in Retrying(
            retry=retry_if_exception(_may_pass), wait=wait_exponential(0.5, max=4), stop=stop_after_attempt(3), reraise=True
        ):
            with attempt, httpx.stream("POST", address, json=event, timeout=5, follow_redirects=False) as answer:
                answer.raise_for_status()
        failure.clear()
    except httpx.HTTPStatusError as error:
        failure.append(f"it answered with {error.response.status_code}")
    except Exception as error:  # its text may hold the address
        failure.append(type(error).__name__)


def _may_pass(error: BaseException) -> bool:
    """Whether another try may succeed: after silence, and after an error of the server's own."""
    return isinstance(error, httpx.TransportError) or (
        isinstance(error, httpx.HTTPStatusError) and (error.response.is_server_error or error.response.status_code == 429)
    )
