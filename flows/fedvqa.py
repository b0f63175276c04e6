"""Stage ``fedvqa``: write the embedded data."""

from tasks.project import command_line


def fedvqa() -> None:
    """Write data folders, contact sheet and data card."""
    from tasks.stages.fedvqa import write_fedvqa

    write_fedvqa()


if __name__ == "__main__":
    command_line.stage(fedvqa)
