"""Stage ``router``: fit the first router."""

from tasks.routing import fit_router
from tasks.runtime import flow, main


@flow
def router() -> None:
    """Fit the first router."""
    fit_router()


if __name__ == "__main__":
    main(router)
