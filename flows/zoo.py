"""Stage ``zoo``: train the tiny models from scratch (frozen in ``dvc.yaml``; `make zoo` thaws it)."""

from tasks.runtime import flow, main
from tasks.zoo import train_zoo


@flow
def zoo() -> None:
    """Train every model of the zoo."""
    train_zoo()


if __name__ == "__main__":
    main(zoo)
