"""The champion before serves again (`make rollback`)."""

from __future__ import annotations

from rich.console import Console

from tasks.project import command_line


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


if __name__ == "__main__":
    command_line.command(rollback)
