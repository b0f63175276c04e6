"""Stage ``fedvqa``: write the embedded data."""

from mor.config import load_params
from tasks.project import command_line


def fedvqa() -> None:
    """Write data folders, contact sheet and data card."""
    from tasks.stages.fedvqa import write_fedvqa

    params = load_params()
    write_fedvqa(params.seed, params.fedvqa)


if __name__ == "__main__":
    command_line.stage(fedvqa)
