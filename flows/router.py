"""Stage ``router``: fit the first router."""

from tasks import runtime


def router() -> None:
    """Fit the first router."""
    from tasks.routing import fit_router

    fit_router()


if __name__ == "__main__":
    runtime.stage(router)
