"""Addresses in settings: of servers, which hold no login, and of models, which say their revision."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from mor.errors import ConfigError


def _public(address: str) -> str:
    """An address without a login in it; ``ssh://git@host/path`` holds a name that every user of the host shares."""
    netloc = address.partition("://")[2].partition("/")[0]
    name, at, _ = netloc.rpartition("@")
    if at and (":" in name or not address.startswith("ssh://")):
        raise PydanticCustomError("secret", "it holds a login")
    return address


def _plain(url: str) -> str:
    """A client's url without anything that may be a login, such as a mistyped one or a token in a query."""
    if set("@?#\\") & set(url):
        raise PydanticCustomError("secret", "it holds a login, or what may be one (@, ?, # or a backslash)")
    return url


# An address in ``params.yaml``, which git, DVC and MLflow keep and show: with a login in it, it is refused and not repeated.
Address = Annotated[str, AfterValidator(_public)]
ClientUrl = Annotated[str, AfterValidator(_plain)]


_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def split_revision(source: str) -> tuple[str, str | None]:
    """``(folder, None)`` of a model folder, ``(hub id, revision)`` of ``org/name@revision``.

    An existing folder is one whatever its name; of the rest, ``org/name`` is a hub id unless it begins as a path does.
    Raises ``ConfigError`` for a hub id without a revision: its owner could put other weights under the same name.
    """
    name, _, revision = source.partition("@")
    if Path(source).is_dir() or source.startswith((".", "~", "models/")) or not _HUB_ID.fullmatch(name):
        return source, None
    if not revision:
        raise ConfigError(
            f"{source!r} is no folder here, and a hub id must say which revision: append @<commit> (@main is allowed but moves)"
        )
    return name, revision


def _pinned(source: str) -> str:
    split_revision(source)
    return source


# A model folder, or a hub id with its revision
ModelSource = Annotated[str, AfterValidator(_pinned)]
