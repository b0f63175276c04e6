"""Stage ``validate``: every data set against its expectations."""

from __future__ import annotations

from mor.config import load_params
from tasks.project import command_line


def validate() -> None:
    """Check the data of all clients, the public prompts and the evaluation sets."""
    from tasks.stages.validate import validate_data

    params = load_params()
    validate_data(list(params.clients), params.validation)


if __name__ == "__main__":
    command_line.stage(validate)
