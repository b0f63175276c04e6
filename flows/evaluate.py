"""Stage ``evaluate``: base against aligned, reward models, router, bytes and seconds."""

from tasks.evaluation import evaluate_models
from tasks.runtime import flow, main


@flow
def evaluate() -> None:
    """Measure base and aligned policy on held-out data."""
    evaluate_models()


if __name__ == "__main__":
    main(evaluate)
