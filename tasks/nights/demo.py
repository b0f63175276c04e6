"""Simulated nights: the project that they run in, what is delivered to it, and how each night must end.

They show that good data is promoted, that broken and poisoned data and a worse model do no harm, and that a night without
data does nothing. A series is a clone of this project below ``.demo`` with small settings.

Every night is a process of its own (``mor night <night>``), so that it can be killed as a machine kills it; how
it ended is read back from Prefect's and MLflow's servers and not from what it printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from mor.data.schema import Preference, read_rows, write_rows
from mor.evaluation.gate import CHAMPION
from mor.fedvqa.write import image_digests, write_client
from mor.seeds import stream
from tasks.project import guard, paths
from tasks.project.dvc import DVC
from tasks.project.processes import NIGHT_VARIABLE, marked
from tasks.tracking.registry import POLICY

if TYPE_CHECKING:
    from mlflow import MlflowClient

STARTUP = 10.0  # seconds, at most, that a killed night gets to come back to where it was
DEMO = Path(".demo")
SIZES: dict[str, dict[str, Any]] = {
    "fedvqa": {"pairs": 500, "held_out_pairs": 30, "public": 300, "questions": 300},
    "rewards": {"steps": 90, "batch_size": 16},
    "grpo": {"rounds": 1, "steps": 40, "prompts": 8, "generations": 8, "learning_rate": 0.002},
    "evaluation": {"resamples": 500},
    "gate": {"margin": 0.2, "held_out_margin": 0.2, "total_margin": 0.2, "accuracy_margin": 0.2},  # as 300 questions allow
    "validation": {"on_bad_rows": "quarantine"},
    "nightly": {"retry_delay": 1},
}


@dataclass(frozen=True)
class SimulatedNight:
    """What is done before a night, and how it must end."""

    name: str
    title: str
    prepare: Callable[[Path], None]
    ending: str
    champion: int  # version of the policy that serves afterwards


def nothing(project: Path) -> None:
    """A night to which nobody brought anything."""


def deliver(
    project: Path, client: str, name: str, seed: int, spoil: Callable[[list[Preference]], list[str]] | None = None
) -> None:
    """Put 60 new pairs into a client's inbox; ``spoil`` turns them into the lines that are written."""
    settings = yaml.safe_load((project / paths.PARAMS).read_text())["fedvqa"]
    fresh, inbox = project / DEMO / name, project / "inbox" / client
    (fresh / "images").mkdir(parents=True)
    taken = image_digests(project / paths.PUBLIC, project / paths.EVAL, project / paths.client_folder(client))
    style, rng = settings["styles"][client], stream(seed, "delivery", client)
    write_client(fresh, client, house=style, pairs=60, error_rate=0.05, answers=[], taken=taken, rng=rng)
    rows = [
        row.model_copy(update={"id": f"{name}-{row.id}", "image": row.image.replace("images/", f"images/{name}-")})
        for row in read_rows(fresh / "preferences.jsonl", Preference)
    ]
    (inbox / "images").mkdir(parents=True, exist_ok=True)
    for picture in (fresh / "images").iterdir():
        picture.rename(inbox / "images" / f"{name}-{picture.name}")
    draft = inbox / f"{name}.partial"
    write_rows(draft, rows)
    if spoil:
        draft.write_text("".join(f"{line}\n" for line in spoil(rows)))
    draft.rename(draft.with_suffix(".jsonl"))
    shutil.rmtree(fresh)


def broken_rows(rows: list[Preference]) -> list[str]:
    """Lines of which none can be used: no JSON, a missing key, a missing picture, equal answers."""
    faults: list[Callable[[dict[str, Any]], str]] = [
        lambda row: json.dumps(row)[:-9],
        lambda row: json.dumps({key: value for key, value in row.items() if key != "chosen"}),
        lambda row: json.dumps(row | {"image": "images/lost.png"}),
        lambda row: json.dumps(row | {"rejected": row["chosen"]}),
    ]
    return [faults[i % len(faults)](row.model_dump()) for i, row in enumerate(rows)]


def poisoned(rows: list[Preference]) -> list[str]:
    """Pairs whose preference is turned round."""
    flipped = (row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen}) for row in rows)
    return [row.model_dump_json() for row in flipped]


def set_params(project: Path, **sections: Mapping[str, Any]) -> None:
    """Change settings in the project's ``params.yaml``."""
    path = project / paths.PARAMS
    params = yaml.safe_load(path.read_text())
    for section, values in sections.items():
        params[section].update(values)
    path.write_text(yaml.safe_dump(params, sort_keys=False))


NIGHTS = [
    SimulatedNight("2026-01-01", "first night", nothing, "Promoted", 1),
    SimulatedNight("2026-01-02", "new good data", lambda p: deliver(p, "documents", "good", 1), "Promoted", 2),
    SimulatedNight("2026-01-03", "bad data", lambda p: deliver(p, "scenes", "bad", 2, broken_rows), "Unchanged", 2),
    SimulatedNight("2026-01-04", "no data", nothing, "Unchanged", 2),
    SimulatedNight("2026-01-05", "a poisoned client", lambda p: deliver(p, "documents", "poisoned", 3, poisoned), "Held", 2),
    SimulatedNight("2026-01-06", "a worse model", lambda p: set_params(p, grpo={"learning_rate": 1e-6}), "Refused", 2),
]


def make_project(folder: Path) -> None:
    """A clone of this project as it stands in the working tree, with two clients, small settings and a DVC remote."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(exist_ok=True)
    _quietly("git", "clone", "--quiet", ".", str(folder))
    for name in filter(None, _quietly("git", "ls-files", "-co", "--exclude-standard", "-z").split("\0")):
        if Path(name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, folder / name)
    params = yaml.safe_load((folder / paths.PARAMS).read_text())
    del params["clients"]["medical"]
    params["threads"] = 1  # models this small gain nothing from more, and lose much beside another busy process
    (folder / paths.PARAMS).write_text(yaml.safe_dump(params, sort_keys=False))
    set_params(folder, **SIZES)
    storage = folder.parent.resolve() / f"{folder.name}-storage"
    shutil.rmtree(storage, ignore_errors=True)
    _quietly(*DVC, "remote", "add", "-d", "storage", str(storage), folder=folder)
    _quietly("git", "add", "-A", folder=folder)
    identity = ["-c", "user.name=demo", "-c", "user.email=demo@localhost"]
    _quietly("git", *identity, "commit", "--quiet", "-m", "Start of the series", folder=folder)


def _quietly(*command: str, folder: Path | None = None) -> str:
    """The output of a command that must succeed."""
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


# --- running, killing and looking ---------------------------------------------------------------------------------------


def start_night(project: Path, night: str, address: str) -> subprocess.Popen[bytes]:
    """The night's process; its output is appended to ``nights.log`` in the project."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "MOR_", "DVC_"))}
    environment |= {"PREFECT_API_URL": f"{address}/api", "PYTHONPATH": str(project.resolve())}
    with (project / "nights.log").open("ab") as log:
        command = [sys.executable, "-m", "flows.cli", "night", night]
        return subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log, start_new_session=True)


def kill(process: subprocess.Popen[bytes], project: Path, whole: bool) -> None:
    """SIGKILL the night alone, or with everything that it has started."""
    for victim in (psutil.Process(process.pid), *(marked(NIGHT_VARIABLE, str(project.resolve())) if whole else [])):
        with suppress(psutil.Error):
            victim.send_signal(signal.SIGKILL)
    process.wait()


def kill_times(count: int, seconds: float, rng: random.Random) -> list[float]:
    """Seconds after each start at which a night that takes ``seconds`` is killed, ``count`` times.

    The points are drawn evenly over the night; each go gets some more to start up and to reach where the last one was.
    """
    points = sorted(rng.uniform(0, seconds) for _ in range(count))
    return [after - before + rng.uniform(0, STARTUP) for before, after in zip([0.0, *points], points, strict=False)]


def simulate(night: SimulatedNight, project: Path, address: str, waits: list[float], rng: random.Random) -> tuple[float, int]:
    """One night, killed after each of ``waits`` seconds unless it ends before; seconds of the last go, and kills."""
    night.prepare(project)
    kills = 0
    while True:
        began = time.monotonic()
        process = start_night(project, night.name, address)
        try:
            process.wait(waits[kills] if kills < len(waits) else None)
            return time.monotonic() - began, kills
        except subprocess.TimeoutExpired:
            kill(process, project, whole=rng.random() < 0.5)
            kills += 1


def seen_in_prefect(night: str, address: str) -> str:
    """The final state's name of the night's latest flow run, by Prefect's API."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    named = FlowRunFilter.model_validate({"name": {"any_": [f"night {night}"]}})
    with guard.prefect_client(address) as client:
        runs = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC)
    return str(runs[0].state.name) if runs and runs[0].state else "no run"


def seen_in_mlflow(project: Path, night: str) -> tuple[str, int]:
    """How the night's run ended, and the champion's version, by MLflow's API; "no run" for a night that had no work."""
    from mlflow.exceptions import MlflowException

    client = _store_of(project)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`mor.night` = '{night}'")
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    try:
        champion = int(client.get_model_version_by_alias(POLICY, CHAMPION).version)
    except MlflowException:
        champion = 0
    return (parents[0].data.tags.get("mor.ended", "unfinished") if parents else "no run"), champion


def _store_of(project: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{project.resolve() / 'mlflow.db'}")


def final_state(project: Path) -> dict[str, Any]:
    """What a series leaves behind, whenever and however often it was interrupted: all but clocks, and ids that are drawn."""
    shown = "--format=%(refname:short) %(contents:subject)"
    nights = _quietly("git", "tag", "--list", "night/*", shown, folder=project).splitlines()
    state: dict[str, Any] = {"nights": nights, "commits": _quietly("git", "log", "--format=%s", folder=project).splitlines()}
    for tag in (line.split()[0] for line in nights):
        state[tag] = json.loads(_quietly("git", "show", f"{tag}:{paths.METRICS}", folder=project))
        del state[tag]["seconds"]
    for folder in (paths.CLIENTS, paths.ARCHIVE, paths.POLICY, paths.REWARDS, Path("inbox")):
        state[str(folder)] = {
            str(path.relative_to(project)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((project / folder).rglob("*"))
            if path.is_file()
        }
    endings = {night.name: seen_in_mlflow(project, night.name) for night in NIGHTS}
    return state | {"endings": endings, "registry": _registered(project)}


def _registered(project: Path) -> dict[str, Any]:
    """Versions with their night and digest, and aliases, of every registered model."""
    client = _store_of(project)
    return {
        model.name: {
            "aliases": dict(sorted(client.get_registered_model(model.name).aliases.items())),
            "versions": sorted(
                (int(version.version), version.tags.get("mor.night", ""), version.tags.get("mor.digest", ""))
                for version in client.search_model_versions(f"name = '{model.name}'")
            ),
        }
        for model in client.search_registered_models()
    }
