"""Pin the baseline that nights together may lose little against.

Without an argument it is the present champion. Whoever runs it approves of that version; MLflow's registry keeps who and when.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def pin(
    wanted: Annotated[
        str | None, typer.Argument(metavar="VERSION|NIGHT", help="the champion where none is given", show_default=False)
    ] = None,
) -> None:
    """Set the alias and say from what to what."""
    from tasks.tracking import registry

    before = registry.baseline()
    now = registry.pin(wanted)
    instead = f", instead of version {before.policy} (night {before.night})" if before and before.policy != now.policy else ""
    Console().print(
        f"Baseline: mor-policy version {now.policy} (night {now.night}){instead}. No candidate passes that is worse than it "
        "by more than gate.total_margin.",
        highlight=False,
    )
