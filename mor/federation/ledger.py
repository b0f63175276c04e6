"""The byte ledger: everything sent, both directions, by client and type of message.

Two columns: the *payload* is what the messages weigh, which is the same over every transport; the *socket* column is what the
TCP connection carried for them, with headers and TLS (0 in-process, where nothing is carried).
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Literal

Key = tuple[str, str, str]  # client, message, "up" (leaves the client) or "down" (reaches it)


class Ledger:
    """Payload (``bytes``) and socket bytes by client, message type and direction."""

    def __init__(self) -> None:
        self.bytes: defaultdict[Key, int] = defaultdict(int)
        self.socket: defaultdict[Key, int] = defaultdict(int)

    def record(
        self, client: str, message: str, *, up: int = 0, down: int = 0, socket_up: int = 0, socket_down: int = 0
    ) -> None:
        for way, payload, carried in (("up", up, socket_up), ("down", down, socket_down)):
            self.bytes[client, message, way] += payload
            self.socket[client, message, way] += carried

    def total(self, client: str, direction: str, column: Literal["bytes", "socket"] = "bytes") -> int:
        table = self.bytes if column == "bytes" else self.socket
        return sum(n for (who, _, way), n in table.items() if (who, way) == (client, direction))

    def restore(self, *paths: Path) -> None:
        """Become the sum of saved ledgers."""
        saved = Ledger.load(*paths)
        self.bytes, self.socket = saved.bytes, saved.socket

    def save(self, path: Path) -> None:
        rows = [[*key, n, self.socket[key]] for key, n in sorted(self.bytes.items())]
        path.write_text(json.dumps(rows, indent=0) + "\n")

    @classmethod
    def load(cls, *paths: Path) -> Ledger:
        """The sum of saved ledgers."""
        ledger = cls()
        for path in paths:
            for client, message, direction, payload, carried in json.loads(path.read_text()):
                ledger.bytes[client, message, direction] += payload
                ledger.socket[client, message, direction] += carried
        return ledger
