"""Delete what neither champions nor the last nights need. Without options it only says what would go."""

from __future__ import annotations

from typing import Annotated

import typer

from mor.config import load_params
from tasks.project import paths


def prune(
    yes: Annotated[bool, typer.Option("--yes", help="delete it")] = False,
    cloud: Annotated[bool, typer.Option("--cloud", help="also on the DVC remote, and the tags on nightly.git_remote")] = False,
) -> None:
    """Say what would go, or delete it."""
    from tasks.nights.prune import prune_nights

    prune_nights(load_params(paths.PARAMS).nightly, yes, cloud)
