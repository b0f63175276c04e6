"""Stage ``evaluate``: base against aligned, reward models, router, bytes and seconds."""

from mor.config import load_params
from tasks.project import command_line


def evaluate() -> None:
    """Measure base and aligned policy on held-out data."""
    from tasks.stages.evaluate import evaluate_models

    evaluate_models(load_params())


if __name__ == "__main__":
    command_line.stage(evaluate)
