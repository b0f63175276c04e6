"""Simulated nights. With `--kills 20` a second series is killed so often, and must end the same."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mor.errors import UserError

if TYPE_CHECKING:
    from tasks.nights.demo import SimulatedNight

console = Console()
console.width = max(console.width, 110)  # the table's


def series(folder: Path, kills: int, seconds: dict[str, float], seed: int) -> dict[str, float]:
    """All nights in a fresh project; returns each night's seconds. Raises ``UserError`` where one did not end as it must.

    The kills are spread over the nights in proportion to ``seconds``, at moments drawn from ``seed``.
    """
    from tasks.nights.demo import NIGHTS, kill_times, make_project, simulate

    console.print(f"[bold]{folder}[/]: a fresh project")
    make_project(folder)
    rng = random.Random(seed)
    struck = rng.choices([night.name for night in NIGHTS], [seconds.get(night.name, 1.0) for night in NIGHTS], k=kills)
    table = Table("night", "", "must end", "Prefect", "MLflow", "champion", "kills", "s", box=box.SIMPLE_HEAD)
    taken, wrong, done = {}, [], 0
    with _server_in(folder) as address:
        for night in NIGHTS:
            console.print(f"night {night.name}: {night.title} ...")
            due = sum(name <= night.name for name in struck) - done  # with those that came too late before
            waits = kill_times(due, seconds.get(night.name, 0.0), rng)
            taken[night.name], hits = simulate(night, Path(), address, waits, rng)
            done += hits
            right, row = _outcome(night, address)
            wrong += [] if right else [night.name]
            table.add_row(*row, str(hits), f"{taken[night.name]:.0f}")
    console.print(table)
    if kills:
        console.print(f"{done} of {kills} kills struck")
    if wrong:
        raise UserError(f"{folder}: nights {', '.join(wrong)} did not end as they must; {folder}/nights.log says what happened")
    return taken


@contextmanager
def _server_in(folder: Path) -> Iterator[str]:
    """The address of a Prefect server whose history belongs to the project, which is the current folder meanwhile."""
    from tasks.project.servers import temporary_prefect

    with chdir(folder), temporary_prefect() as address:
        if address is None:
            raise UserError(f"{folder}/.prefect/server.log: the Prefect server did not start")
        yield address


def _outcome(night: SimulatedNight, address: str) -> tuple[bool, tuple[str, ...]]:
    """Whether the night ended as it must, and what the table says of that."""
    from tasks.nights.demo import seen_in_mlflow, seen_in_prefect

    ending, (recorded, champion) = seen_in_prefect(night.name, address), seen_in_mlflow(Path(), night.name)
    right = ending == night.ending and recorded in (night.ending, "no run") and champion == night.champion
    mark = "[green]✓[/]" if right else "[red]✗[/]"
    expected = f"{mark} {night.ending}, champion {night.champion}"
    return right, (night.name, night.title, expected, ending, recorded, str(champion))


def nights_demo(
    kills: Annotated[int, typer.Option(min=0, help="SIGKILLs over a second series of nights")] = 0,
    seed: Annotated[int, typer.Option(help="of the moments of the kills")] = 0,
) -> None:
    """The undisturbed series, and the disturbed one if kills are asked for."""
    from tasks.nights.demo import DEMO, final_state

    calm, killed = DEMO / "calm", DEMO / "killed"
    seconds = series(calm, 0, {}, seed)
    (DEMO / "seconds.json").write_text(json.dumps(seconds))
    if not kills:
        return
    series(killed, kills, seconds, seed)
    first, second = final_state(calm), final_state(killed)
    different = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
    for name, state in (("calm", first), ("killed", second)):
        (DEMO / f"{name}.json").write_text(json.dumps(state, indent=1, default=str))
    if different:
        raise UserError(f"The series differ in {', '.join(sorted(different))}: compare {DEMO}/calm.json and killed.json")
    console.print("[green]The kills changed nothing:[/] data, archive, models, metrics, commits and registry are equal.")
