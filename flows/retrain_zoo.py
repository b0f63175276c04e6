"""Train the tiny models of `models/zoo` again: about an hour. Their weights are in git, so review what it changed.

The stage `zoo` is frozen in `dvc.yaml`, so that nothing else trains them; it is thawed while this runs.
"""

from __future__ import annotations

import sys

from mor.errors import UserError
from tasks.project import paths

FROZEN, THAWED = "\n    frozen: true", "\n    frozen: false"


def zoo() -> None:
    """Thaw the stage, run it, and put `dvc.yaml` back as it was, layout and all (`dvc freeze` would not)."""
    from tasks.project import processes
    from tasks.project.dvc import StageFailed, reproduce

    stages = paths.DVC_YAML.read_text()
    if stages.count(FROZEN) != 1:
        raise UserError(f"{paths.DVC_YAML}: expected one line `frozen: true`, in the stage zoo; git knows how it was")
    processes.heed_signals()
    paths.DVC_YAML.write_text(stages.replace(FROZEN, THAWED))
    try:
        reproduce(["zoo"])
    except StageFailed as failure:
        sys.exit(failure.code)
    finally:
        paths.DVC_YAML.write_text(stages)
