"""Who answered, and whether that is enough: one rule for every stage that asks clients.

Of K clients at least ``min(quorum, K)`` must answer; below that nothing is made of what the others say. A client that was not
asked has not answered: where those asked are too few to tell, the others are asked who they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from mor.errors import Unavailable
from mor.federation.remote import ClientError, RemoteClient

T = TypeVar("T")


class QuorumError(Unavailable, RuntimeError):
    """Too few clients answered; the last checkpoint is saved and the stage can go on later."""


def ask(clients: Iterable[RemoteClient], question: Callable[[RemoteClient], T]) -> tuple[dict[str, T], dict[str, str]]:
    """Every client's answer by name, and why the others gave none."""
    answers: dict[str, T] = {}
    failures: dict[str, str] = {}
    for client in clients:
        try:
            answers[client.name] = question(client)
        except ClientError as error:
            failures[client.name] = str(error)
    return answers, failures


def require_quorum(
    clients: Sequence[RemoteClient], failures: Mapping[str, str], quorum: int, unasked: Iterable[str] = ()
) -> None:
    """Raise ``QuorumError`` unless enough ``clients`` answered: those that neither have a failure nor were ``unasked``.

    Unasked ones are greeted where it depends on them.
    """
    needed, silent = min(quorum, len(clients)), dict(failures)
    open_ = [client for client in clients if client.name in set(unasked)]
    if len(clients) - len(silent) - len(open_) < needed:
        silent |= ask(open_, RemoteClient.hello)[1]
    if len(clients) - len(silent) < needed:
        reasons = "\n".join(f"  {reason}" for reason in silent.values())
        raise QuorumError(
            f"{len(clients) - len(silent)} of {len(clients)} clients answered, the quorum is {needed}; no answer from "
            f"{', '.join(silent)}:\n{reasons}\nBring them back and run `dvc repro` again: it goes on from the last checkpoint."
        )
