"""Workspaces: project folders below ``.benchmark``, each with a ``params.yaml`` of its own and what it shares with others.

Shared files are hard links, so they cost no space and no time, and no path leaves the workspace. Whoever changes a shared
file must replace it: written in place, it would change for all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from mor.config import Params
from mor.files import fresh_folder
from tasks.project import paths

ROOT = Path(".benchmark")
LOG = "log.txt"
MADE_FOR = "made_for"  # the key of what a workspace was made for


@dataclass(frozen=True)
class Workspace:
    """A workspace: its folder, its settings, a key of all that it depends on, what it shares (path inside -> source).

    ``folder`` and the sources are absolute, for they are used inside of workspaces too.
    """

    folder: Path
    params: Params
    key: str
    shared: Mapping[Path, Path] = field(default_factory=dict)

    def prepare(self) -> None:
        """Make the workspace, empty where its key differs, with what it shares as far as that is made."""
        mark = self.folder / MADE_FOR
        if not mark.exists() or mark.read_text() != self.key:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        values = self.params.model_dump(exclude_none=True)
        (self.folder / paths.PARAMS).write_text(yaml.safe_dump(values, sort_keys=False))
        mark.write_text(self.key)
        for place, source in self.shared.items():
            if source.exists():
                share(source, self.folder / place)


def workspace_folder(name: str) -> Path:
    """Absolute folder of the workspace of that name, such as ``default-0/mor``."""
    return (ROOT / name).absolute()


def share(source: Path, target: Path) -> None:
    """Put a folder at ``target`` too, whole or not at all, its files as hard links; a target that is there is left alone."""
    if not target.exists():
        with fresh_folder(target) as draft:
            shutil.copytree(source, draft, copy_function=_link, dirs_exist_ok=True)


def _link(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy where there can be none, as on another device."""
    try:
        os.link(os.path.realpath(source), target)  # of the file itself, not of a symbolic link to it
    except OSError:
        shutil.copy2(source, target)
