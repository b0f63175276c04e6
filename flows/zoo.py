"""Stage ``zoo``: train the tiny models from scratch (frozen in ``dvc.yaml``; `mor zoo` thaws it)."""

from tasks.project import runtime


def zoo() -> None:
    """Train every model of the zoo."""
    from tasks.stages.zoo import train_zoo

    train_zoo()


if __name__ == "__main__":
    runtime.stage(zoo)
