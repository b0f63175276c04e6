"""Pin the baseline that nights together may lose little against: ``python -m flows.pin [VERSION | NIGHT]`` (``make pin``).

Without an argument it is the present champion. Whoever runs it approves of that version; MLflow's registry keeps who and when.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from tasks import registry
from tasks.runtime import main


def pin(wanted: str | None) -> None:
    """Set the alias and say from what to what."""
    before = registry.baseline()
    now = registry.pin(wanted)
    instead = f", instead of version {before.policy} (night {before.night})" if before and before.policy != now.policy else ""
    Console().print(
        f"Baseline: mor-policy version {now.policy} (night {now.night}){instead}. No candidate passes that is worse than it "
        "by more than gate.total_margin.",
        highlight=False,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.pin", description=__doc__)
    parser.add_argument("wanted", nargs="?", metavar="VERSION or NIGHT", help="the champion where none is given")
    main(pin, parser.parse_args().wanted)
