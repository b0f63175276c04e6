"""Killed at any moment and run again, taking deliveries in ends as if undisturbed."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mor.config import Params
from tasks.nights.deliveries import archived_deliveries
from tasks.nights.intake import release, take_in_all
from tasks.stages.validate import DataSet, check_delivery
from tests.tasks.nights.delivering import FOREIGN_WARNINGS, NIGHT, drop, good, load, merged_rows, only, pair, swapped, tree

pytestmark = FOREIGN_WARNINGS
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
WRITES = os.O_WRONLY | os.O_RDWR
PARTS = (Path("data"), Path("inbox"))


def changes_files(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is about to change something in the project's data or inbox."""
    if event == "os.remove" and arguments[1] != -1:  # in a folder of the inbox that is open
        return True
    if event not in EVENTS or not str(arguments[0]).startswith(("data/", "inbox/")):
        return False
    return event != "open" or bool((arguments[2] or 0) & WRITES)


def in_fork(work: Callable[[], object], before: Callable[[str, tuple[Any, ...]], None] | None = None) -> None:
    """Do ``work`` in a fork, which calls ``before`` at each change that it is about to make."""
    child = os.fork()
    if child == 0:
        if before:
            sys.addaudithook(lambda event, arguments: before(event, arguments) if changes_files(event, arguments) else None)
        os.fsync = lambda handle: None  # a kill loses nothing that was written, and a disk is slow
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0, "it ended with an error"


def keep_states(folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Keeps what a SIGKILL at each moment would leave, as folders with numbers for names, each state once.

    Each change has a moment before it, and writing a file a second one: when only the first byte is written.
    """
    seen: list[dict[str, bytes | None]] = []
    busy = False  # keeping a state changes files, too

    def keep(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy:
            return
        busy = True
        for begun in (False, True)[: 1 + (event == "open")]:
            state = folder / str(len(seen))
            for part in PARTS:
                shutil.copytree(part, state / part)
            if begun:
                path, _, flags = arguments
                os.write(os.open(state / path, flags, 0o666), b"{")
            if (found := everything(state)) in seen:
                shutil.rmtree(state)
            else:
                seen.append(found)
        busy = False

    return keep


def everything(root: Path) -> dict[str, bytes | None]:
    """Files with their content, and folders."""
    found = (path for part in PARTS for path in (root / part).rglob("*"))
    return {str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in found}


@pytest.fixture(autouse=True)
def each_table_is_checked_once(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Great Expectations says depends on the rows alone, and takes nine tenths of the time: it is kept over the forks."""
    folder = tmp_path_factory.mktemp("checked")

    def check(data: DataSet, table: pd.DataFrame, *rest: Any) -> Any:
        kept = folder / hashlib.sha256(f"{data}{table.to_csv()}".encode()).hexdigest()
        if not kept.exists():
            kept.write_bytes(pickle.dumps(check_delivery(data, table, *rest)))
        return pickle.loads(kept.read_bytes())

    monkeypatch.setattr("tasks.nights.rows.check_delivery", check)


def evening() -> None:
    """What is in the inbox: a delivery with a new row and a bad one, a poisoned one, and one that came before."""
    drop("a_good", [pair(30), pair(31, id="a5")], [30, 31])
    drop("b_poison", swapped(40, 4), range(40, 44))
    drop("c_known", good(60, 1), [60])


def survives_every_kill(states: Path, work: Callable[[], object], again: Callable[[], object], least: int) -> None:
    """Compare an undisturbed run of ``work`` with ``again`` after a kill of it at each moment."""
    in_fork(work, keep_states(states))
    calm = tree(*PARTS)
    kept = sorted(states.iterdir(), key=lambda state: int(state.name))
    assert len(kept) >= least
    for state in kept:
        for part in PARTS:
            shutil.rmtree(part)
            (state / part).rename(part)
        if state is kept[0]:
            again()  # here, so that what libraries load at their first use is there for every fork
        else:
            in_fork(again)
        assert tree(*PARTS) == calm, f"killed in state {state.name} of {len(kept)}"


def test_killed_at_any_moment_and_run_again_a_night_ends_as_if_undisturbed(params: Params, tmp_path: Path) -> None:
    drop("c_known", good(60, 1), [60])
    take_in_all(params, "2026-01-01", load)
    evening()

    def night() -> None:
        take_in_all(params, NIGHT, load)

    survives_every_kill(tmp_path.with_name(f"{tmp_path.name}-states"), night, night, least=40)
    assert Counter(delivery.state for delivery in archived_deliveries()) == {"merged": 2, "held": 1}
    assert [row.id for row in merged_rows()] == ["n60", "n30"]


def test_killed_at_any_moment_a_release_is_taken_back_or_ended_by_the_next_night(params: Params, tmp_path: Path) -> None:
    drop("poison", swapped(40, 4), range(40, 44))
    name = only(take_in_all(params, NIGHT, load)).name

    def next_night() -> None:
        take_in_all(params, "2026-01-03", load)
        if any(delivery.state == "held" for delivery in archived_deliveries()):
            release(name, params)

    survives_every_kill(tmp_path.with_name(f"{tmp_path.name}-states"), lambda: release(name, params), next_night, least=10)
    assert len(merged_rows()) == 4
