"""The byte ledger: everything sent, both directions, by client and type of message."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path


class Ledger:
    """Bytes by client, message type and direction (``up`` leaves the client, ``down`` reaches it)."""

    def __init__(self) -> None:
        self.bytes: defaultdict[tuple[str, str, str], int] = defaultdict(int)

    def record(self, client: str, message: str, *, up: int = 0, down: int = 0) -> None:
        self.bytes[client, message, "up"] += up
        self.bytes[client, message, "down"] += down

    def total(self, client: str, direction: str) -> int:
        return sum(n for (who, _, way), n in self.bytes.items() if (who, way) == (client, direction))

    def save(self, path: Path) -> None:
        rows = [[*key, n] for key, n in sorted(self.bytes.items())]
        path.write_text(json.dumps(rows, indent=0) + "\n")

    @classmethod
    def load(cls, *paths: Path) -> Ledger:
        """The sum of saved ledgers."""
        ledger = cls()
        for path in paths:
            for client, message, direction, n in json.loads(path.read_text()):
                ledger.bytes[client, message, direction] += n
        return ledger
