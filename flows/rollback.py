"""The champion before serves again, with its reward models."""

from __future__ import annotations

from rich.console import Console


def rollback() -> None:
    """Point the aliases back and say from what to what."""
    from tasks.tracking import registry

    before, now = registry.rollback()
    Console().print(
        f"Champion: mor-policy version {now.policy} (night {now.night}) again, instead of version {before.policy} "
        f"(night {before.night}), with its reward models. Settings and data are as they were: "
        f"`git checkout night/{now.night}` shows those that made it.",
        highlight=False,
    )
