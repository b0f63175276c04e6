"""Stage ``evaluate``: base against aligned, reward models, router, bytes and seconds."""

from tasks.project import command_line


def evaluate() -> None:
    """Measure base and aligned policy on held-out data."""
    from tasks.stages.evaluate import evaluate_models

    evaluate_models()


if __name__ == "__main__":
    command_line.stage(evaluate)
