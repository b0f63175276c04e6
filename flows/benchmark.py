"""Stage ``benchmark``: write the embedded benchmark."""

from tasks import runtime


def benchmark() -> None:
    """Write data folders, contact sheet and data card."""
    from tasks.benchmark import write_benchmark

    write_benchmark()


if __name__ == "__main__":
    runtime.stage(benchmark)
