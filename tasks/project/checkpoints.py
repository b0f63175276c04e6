"""Resumable state of a stage, kept outside DVC's outs and tied to what it was made from."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from mor.files import digest
from tasks.project import paths


def resumable(stage: str, settings: dict[str, Any], inputs: list[Path]) -> Path:
    """The stage's checkpoint folder; emptied first where settings or inputs differ from those it was made with."""
    folder = paths.checkpoint_folder(stage)
    described = json.dumps([settings, [digest(path) for path in inputs]], sort_keys=True, default=str)
    key = hashlib.sha256(described.encode()).hexdigest()
    if not (folder / "key").exists() or (folder / "key").read_text() != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "key").write_text(key)
    return folder
