"""Stage ``benchmark``: write the embedded benchmark."""

from tasks.benchmark import write_benchmark
from tasks.runtime import flow, main


@flow
def benchmark() -> None:
    """Write data folders, contact sheet and data card."""
    write_benchmark()


if __name__ == "__main__":
    main(benchmark)
