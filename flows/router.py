"""Stage ``router``: fit the first router."""

from mor.config import load_params
from tasks.project import command_line


def router() -> None:
    """Fit the first router."""
    from tasks.stages.router import fit_router

    fit_router(load_params())


if __name__ == "__main__":
    command_line.stage(router)
