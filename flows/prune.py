"""Delete what neither champions nor the last nights need: ``python -m flows.prune`` (``make prune``).

Without options it only says what would go.
"""

from __future__ import annotations

import argparse

from tasks.prune import prune
from tasks.runtime import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.prune", description=__doc__)
    parser.add_argument("--yes", action="store_true", help="delete it")
    parser.add_argument("--cloud", action="store_true", help="also on the DVC remote, and the tags on nightly.git_remote")
    given = parser.parse_args()
    main(prune, given.yes, given.cloud)
