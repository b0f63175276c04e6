"""Deliveries: what becomes of what clients drop into their inbox, and the archive that keeps it.

A delivery is ``<inbox>/<client>/<name>.jsonl``, its images beside it. Write it under another suffix and rename it when it
is whole. Each becomes a folder ``data/archive/<client>/<digest>/``, named by the first 8 digits of its digest:

====================  ==========================================================================
``delivery.jsonl``    the rows, byte for byte as they came; its images at their relative paths
``quarantine.jsonl``  rows that could not be used, with their reasons
``delivery.json``     what became of it: ``Delivery``
====================  ==========================================================================

A delivery is a stranger's: what is told of it (reasons, drift, console) holds lines, counts and kinds, never a name or a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rich.console import Console

from mor.data.drift import Decision, Finding
from mor.errors import UserError
from mor.files import DRAFT, write_whole
from tasks.project import paths

ROWS, QUARANTINE, RECORD = "delivery.jsonl", "quarantine.jsonl", "delivery.json"
NOBODY = "unknown"  # stands for a folder of the inbox that is no client's
State = Literal["merged", "held", "discarded", "empty", "refused"]
COLOURS: dict[State, str] = {"merged": "green", "empty": "default"}
console = Console(stderr=True, soft_wrap=True)


class DeliveryError(UserError, ValueError):
    """A delivery cannot be taken in and stays where it is; the message has the line and the fix, no name of theirs."""


class Delivery(BaseModel):
    """One delivery and what became of it.

    ``merged``: its new rows are the client's. ``held``: it drifted too far and waits. ``discarded``: a person declined it.
    ``empty``: it had nothing new that could be used. ``refused``: it could not be taken in and is still in the inbox.
    """

    model_config = ConfigDict(frozen=True)

    client: str
    name: str  # of its folder in the archive: the first 8 digits of the digest
    digest: str = ""  # SHA-256 of rows and images
    file: str  # its name in the inbox
    night: str
    state: State
    finished: bool = True  # False while something of it is still to be done
    rows: int = 0
    accepted: int = 0
    duplicates: int = 0  # rows that the client has, or that came twice
    quarantined: int = 0
    reasons: list[str] = []
    decision: Decision = "continue"
    drift: list[Finding] = []
    again: list[str] = []  # nights that brought the same delivery once more

    @property
    def folder(self) -> Path:
        return paths.ARCHIVE / self.client / self.name

    @property
    def text(self) -> str:
        """The content of its record."""
        return self.model_dump_json(indent=1) + "\n"

    def saved_with(self, **changes: Any) -> Delivery:
        """A copy with these changes, whose record is written at once."""
        changed = self.model_copy(update=changes)
        write_whole(changed.folder / RECORD, changed.text)
        return changed

    def public_view(self, clients: Iterable[str]) -> Delivery:
        """What others may see of it: without the file's name, and its folder's where that is no client's."""
        client = self.client if self.client in clients else NOBODY
        return self.model_copy(update={"file": "", "name": self.digest[:8] or self.name, "client": client})

    def in_night(self, night: str) -> Delivery | None:
        """The delivery as it came that night, first or once more; None if it did not."""
        if self.night == night:
            return self
        if night not in self.again:
            return None
        reason = f"the same as came in night {self.night}, which is {self.state}"
        counts = {"accepted": 0, "quarantined": 0, "duplicates": self.rows}
        return self.model_copy(update={"state": "empty", "night": night, "reasons": [reason], "drift": [], **counts})

    def print(self) -> None:
        """Tell the terminal what became of it."""
        counts = f"{self.rows} rows, {self.accepted} new, {self.duplicates} known, {self.quarantined} set aside"
        judged = f"; drift: {self.decision}" if self.drift else ""
        title, style = f"{self.client}: {self.name}: {self.state}", COLOURS.get(self.state, "yellow")
        console.print(title, style=style, end="", highlight=False, markup=False)
        for line in (f": {counts}{judged}", *(f"  {reason}" for reason in self.reasons)):
            console.print(line, highlight=False, markup=False)


def archived_deliveries() -> list[Delivery]:
    """Every delivery in the archive, by client and the name of its file."""
    records = sorted(path for path in paths.ARCHIVE.glob(f"*/*/{RECORD}") if not path.parent.name.endswith(DRAFT))
    found = [Delivery.model_validate_json(path.read_text(encoding="utf-8")) for path in records]
    return sorted(found, key=lambda delivery: (delivery.client, delivery.file, delivery.name))
