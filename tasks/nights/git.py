"""What a night versions: clients' data and the archive with DVC, its state with git, both pushed to their remotes."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import yaml

from mor.errors import Unavailable, UserError
from mor.text import printable
from tasks.project import paths
from tasks.project.dvc import DVC

NIGHT_TAG = "night/"  # begins the tag of every night that left something
# What a night's commit holds, besides the pointers to data that no stage makes.
KEPT = [paths.DVC_YAML, paths.DVC_LOCK, paths.PARAMS, paths.METRICS]
IDENTITY = ["-c", "user.name=MoR nightly", "-c", "user.email=nightly@localhost"]  # where git knows no other
PRIVATE = re.compile(r"\b(data|inbox|models)/|\.jsonl\b|'[^']*\.(png|jpe?g|webp|bmp)'", re.IGNORECASE)
HIDDEN = "(what it said of clients' files is left out here; run it by hand)"


def version_clients(clients: Iterable[str]) -> None:
    """``dvc add`` the data of clients that no stage makes; before any stage looks, whose dependency holds the pointers too."""
    stages = yaml.safe_load(paths.DVC_YAML.read_text())["stages"].values()
    made = {next(iter(out)) if isinstance(out, dict) else out for stage in stages for out in stage.get("outs", [])}
    _add(path for path in map(paths.client_folder, clients) if str(path) not in made)


def _add(folders: Iterable[Path]) -> None:
    """Version folders that exist with DVC, which leaves the files in place as they are; a kill can't take one away."""
    if names := [str(folder) for folder in folders if folder.exists()]:
        output_of(*DVC, "add", "--quiet", "--no-relink", *names)


def keep(night: str, ending: str, message: str) -> None:
    """Version the archive and commit the night's state as ``night/<name>``; where there is no git, only the first."""
    _add([paths.ARCHIVE])
    if not Path(".git").exists():
        return
    pointers = [*paths.DATA.glob("*.dvc"), *paths.CLIENTS.glob("*.dvc")]
    output_of("git", "add", "--", *(str(path) for path in (*KEPT, *pointers) if path.exists()))
    identity = [] if output_of("git", "config", "user.email", check=False) else IDENTITY
    if output_of("git", "status", "--porcelain", "--untracked-files=no"):
        title = f"Night {night}: {ending.lower()}"
        output_of("git", *identity, "commit", "--quiet", "--no-verify", "-m", f"{title}\n\n{message}".strip())
    output_of("git", *identity, "tag", "--force", "-m", ending, f"{NIGHT_TAG}{night}")


def push(night: str, remote: str) -> None:
    """Data, models and run cache to the DVC remote, commit and tag to the git remote; to those that are set."""
    if dvc_remotes():
        output_of(*DVC, "push", "--quiet", "--run-cache", error=Unavailable)
    if remote:
        output_of("git", "push", "--quiet", remote, "HEAD", f"{NIGHT_TAG}{night}", error=Unavailable)


def tagged_nights(pattern: str = "*", *, check: bool = True) -> list[str]:
    """Names of the nights that left a tag; without ``check`` none where git has nothing to say."""
    found = output_of("git", "tag", "--list", f"{NIGHT_TAG}{pattern}", check=check).splitlines()
    return [tag.removeprefix(NIGHT_TAG) for tag in found]


def dvc_remotes() -> str:
    """The DVC remotes that are set, empty for none."""
    return output_of(*DVC, "remote", "list")


def output_of(*command: str, check: bool = True, error: type[UserError] = UserError) -> str:
    """A command's output; raises ``error`` with what it printed where it fails, but for lines that may name clients' files."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        telling = [line for line in said if not PRIVATE.search(line)]
        text = "\n".join([*telling, *[HIDDEN] * (len(telling) < len(said))])[-1000:]
        raise error(f"{' '.join(command)[:300]} failed: {printable(text, None, lines=True)}")
    return done.stdout.strip()
