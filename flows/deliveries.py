"""Deliveries: without options, list those that wait in the inbox and those that are held.

A held one is merged by `--release NAME` or declined by `--discard NAME`; `--now` takes in what waits, as a night would.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mor.config import load_params
from mor.text import printable
from tasks.project import paths

if TYPE_CHECKING:
    from tasks.nights.deliveries import Delivery

console = Console(soft_wrap=True)


def deliveries(
    to_release: Annotated[str | None, typer.Option("--release", metavar="NAME", help="merge a held delivery")] = None,
    to_discard: Annotated[
        str | None, typer.Option("--discard", metavar="NAME", help="decline a held delivery; the archive keeps it")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="take in what waits")] = False,
) -> None:
    """Do what is asked, one process at a time; without a wish, list."""
    if sum((to_release is not None, to_discard is not None, now)) > 1:
        raise typer.BadParameter("give one of --release, --discard and --now")
    from tasks.nights.intake import discard, file_label, held_deliveries, release, take_in_all, waiting
    from tasks.nights.journal import night_lock, today

    params = load_params(paths.PARAMS)
    inbox = Path(params.nightly.inbox)
    if not (to_release or to_discard or now):
        show([f"{file_label(path)}  {printable(path)}" for path in waiting(inbox)], held_deliveries())
        return
    with night_lock():
        if now and not take_in_all(params, f"{today(params.nightly.timezone)} by hand"):
            console.print(f"Nothing waits in {inbox}.")
        if to_release:
            tell(release(to_release, params))
        if to_discard:
            tell(discard(to_discard))


def tell(delivery: Delivery) -> None:
    """What became of a held delivery."""
    console.print(f"{delivery.client}/{printable(delivery.name)}: {delivery.state}", highlight=False, markup=False)
    if delivery.state == "merged":
        console.print("The next night trains on it, or `dvc repro` now.")


def show(waits: list[str], held: list[Delivery]) -> None:
    """What waits in the inbox, and what is held for which reason."""
    console.print("Waiting in the inbox:", *(waits or ["nothing"]), sep="\n  ", highlight=False, markup=False)
    if not held:
        console.print("Held: nothing")
        return
    name = Column("held", no_wrap=True, min_width=max(len(f"{delivery.client}/{delivery.name}") for delivery in held))
    table = Table(name, "night", "rows", "new", "why", box=box.SIMPLE_HEAD)
    for delivery in held:
        counts = (str(delivery.rows), str(delivery.accepted))
        cells = (f"{delivery.client}/{delivery.name}", delivery.night, *counts, "\n".join(delivery.reasons))
        table.add_row(*(Text(printable(cell, None, lines=True)) for cell in cells))
    console.print(table)
