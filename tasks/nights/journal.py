"""The journal of the night under way, so that one that was killed goes on, and the lock that keeps nights apart.

``.nights/current.json`` says which night is under way until it has ended well.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

from rich.console import Console

from mor.evaluation.gate import Verdict
from mor.files import write_whole
from mor.text import printable
from tasks.nights.deliveries import Delivery, archived_deliveries
from tasks.nights.git import tagged_nights
from tasks.project import paths
from tasks.project.dvc import StageOutcome
from tasks.project.processes import hold_lock
from tasks.project.webhook import notify

Ending = Literal["", "Unchanged", "Held", "Promoted", "Refused", "Failed"]
CURRENT = paths.NIGHTS / "current.json"
COLOURS = {"Failed": "red", "Refused": "yellow", "Held": "yellow"}
console = Console(stderr=True)


@dataclass
class NightState:
    """What a night has done so far."""

    name: str
    work: bool = False  # whether there is something to do; a restart keeps to it, as does the night after a failed one
    ending: Ending = ""
    message: str = ""
    deliveries: list[Delivery] = field(default_factory=list)  # as others may see them
    stages: list[StageOutcome] = field(default_factory=list)
    verdict: Verdict | None = None

    @property
    def has_new_rows(self) -> bool:
        return any(delivery.state == "merged" and delivery.accepted for delivery in self.deliveries)

    @property
    def held(self) -> list[str]:
        """Deliveries that drifted too far, each with the reasons."""
        return [f"{d.client}: {d.name}: {'; '.join(d.reasons)}" for d in self.deliveries if d.state == "held"]

    def save(self) -> None:
        write_whole(CURRENT, json.dumps({"night": self.name, "work": self.work, "failed": self.ending == "Failed"}))

    def end_without_work(self) -> None:
        """Say why nothing was done."""
        said = "; ".join(f"{d.client}: {d.name}: {', '.join(d.reasons)}" for d in self.deliveries)
        quiet = f"nothing new: {said}" if self.deliveries else "nothing was delivered and nothing is out of date"
        self.ending = "Held" if self.held else "Unchanged"
        self.message = "\n".join(self.held) or quiet

    def end_with(self, verdict: Verdict) -> None:
        """Note what the gate said of the candidate, and which deliveries wait."""
        self.verdict = verdict
        self.ending = "Promoted" if verdict.passed else "Refused"
        reasons = "" if verdict.passed else "; ".join(verdict.reasons)
        self.message = "\n".join(filter(None, [reasons, *(f"held: {text}" for text in self.held)]))

    def announce(self, state: str, message: str) -> None:
        """The night's state on the terminal and to the webhook."""
        title, style, end = f"Night {self.name}: {state}", COLOURS.get(state, "green"), "" if message else "\n"
        console.print(title, style=style, end=end, markup=False, highlight=False)
        if message:
            console.print(f": {printable(message, None, lines=True)}", markup=False, highlight=False)
        notify({"night": self.name, "state": state, "message": message})

    def close(self) -> None:
        """Tell how it ended. Then it is over; what a failed one left undone is the next one's work."""
        self.announce(self.ending, self.message)
        if self.ending == "Failed":
            self.save()
        else:
            CURRENT.unlink(missing_ok=True)


def night_lock() -> AbstractContextManager[None]:
    """The project's lock, for the time of a block; raises ``UserError`` where another night has it."""
    paths.NIGHTS.mkdir(exist_ok=True)
    return hold_lock(paths.NIGHTS / "lock", "another night is under way in this folder; wait for its end")


def begin(name: str | None, timezone: str) -> NightState:
    """The night that was cut off, or else a new one, which does what a failed one left undone."""
    left: dict[str, Any] = json.loads(CURRENT.read_text()) if CURRENT.exists() else {"failed": True, "work": False}
    if not left["failed"]:
        console.print(f"Going on with night {left['night']}, which was cut off")
        return NightState(left["night"], left["work"])
    night = NightState(name or new_name(timezone), left["work"])
    night.save()
    return night


def today(timezone: str) -> str:
    """The date where the nights are."""
    return datetime.now(ZoneInfo(timezone)).date().isoformat()


def new_name(timezone: str) -> str:
    """Today's date, numbered from the second night of a day on."""
    date = today(timezone)
    taken = {*tagged_nights(f"{date}*", check=False), *(delivery.night for delivery in archived_deliveries())}
    return next(name for name in (date, *(f"{date}.{number}" for number in range(2, 1000))) if name not in taken)
