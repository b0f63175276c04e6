"""Simulated nights. With `--kills 20` a second series is killed so often, and must end the same."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mor.config import UserError

console = Console()
console.width = max(console.width, 110)  # the table's


def series(folder: Path, kills: int, seconds: dict[str, float], seed: int) -> dict[str, float]:
    """All nights in a fresh project; returns each night's seconds. Raises ``UserError`` where one did not end as it must.

    The kills are spread over the nights in proportion to ``seconds``, at moments drawn from ``seed``.
    """
    from tasks.nights import demo
    from tasks.project.servers import temporary_prefect

    console.print(f"[bold]{folder}[/]: a fresh project")
    demo.make_project(folder)
    rng = random.Random(seed)
    nights = rng.choices([act.night for act in demo.ACTS], [seconds.get(act.night, 1.0) for act in demo.ACTS], k=kills)
    table = Table("night", "", "must end", "Prefect", "MLflow", "champion", "kills", "s", box=box.SIMPLE_HEAD)
    taken, wrong, struck, home = {}, [], 0, Path.cwd()
    os.chdir(folder)  # the server's history belongs to the project
    try:
        with temporary_prefect() as address:
            if address is None:
                raise UserError(f"{folder}/.prefect/server.log: the Prefect server did not start")
            for act in demo.ACTS:
                console.print(f"night {act.night}: {act.title} ...")
                due = sum(night <= act.night for night in nights) - struck  # with those that came too late before
                waits = demo.moments(due, seconds.get(act.night, 0.0), rng)
                taken[act.night], hits = demo.play(act, Path(), address, waits, rng)
                struck += hits
                ending, (recorded, champion) = demo.seen_in_prefect(act.night, address), demo.seen_in_mlflow(Path(), act.night)
                right = ending == act.ending and recorded in (act.ending, "no run") and champion == act.champion
                if not right:
                    wrong.append(act.night)
                expected = f"{act.ending}, champion {act.champion}"
                mark = "[green]✓[/]" if right else "[red]✗[/]"
                table.add_row(
                    act.night,
                    act.title,
                    f"{mark} {expected}",
                    ending,
                    recorded,
                    str(champion),
                    str(hits),
                    f"{taken[act.night]:.0f}",
                )
    finally:
        os.chdir(home)
    console.print(table)
    console.print(f"{struck} of {kills} kills struck" if kills else "", end="\n" if kills else "")
    if wrong:
        raise UserError(f"{folder}: nights {', '.join(wrong)} did not end as they must; {folder}/nights.log says what happened")
    return taken


def nights(
    kills: Annotated[int, typer.Option(min=0, help="SIGKILLs over a second series of nights")] = 0,
    seed: Annotated[int, typer.Option(help="of the moments of the kills")] = 0,
) -> None:
    """The undisturbed series, and the disturbed one if kills are asked for."""
    from tasks.nights import demo

    calm, killed = demo.DEMO / "calm", demo.DEMO / "killed"
    seconds = series(calm, 0, {}, seed)
    (demo.DEMO / "seconds.json").write_text(json.dumps(seconds))
    if not kills:
        return
    series(killed, kills, seconds, seed)
    first, second = demo.final_state(calm), demo.final_state(killed)
    different = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
    for name, state in (("calm", first), ("killed", second)):
        (demo.DEMO / f"{name}.json").write_text(json.dumps(state, indent=1, default=str))
    if different:
        raise UserError(f"The series differ in {', '.join(sorted(different))}: compare {demo.DEMO}/calm.json and killed.json")
    console.print("[green]The kills changed nothing:[/] data, archive, models, metrics, commits and registry are equal.")
