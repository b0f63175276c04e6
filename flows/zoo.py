"""Stage ``zoo``: train the tiny models from scratch (frozen in ``dvc.yaml``; `mor zoo` thaws it)."""

from mor.config import load_params
from tasks.project import command_line


def zoo() -> None:
    """Train every model of the zoo."""
    from tasks.stages.zoo import train_zoo

    train_zoo(load_params().zoo)


if __name__ == "__main__":
    command_line.stage(zoo)
