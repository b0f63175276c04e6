"""Between two rounds: the router is refitted on fresh answers, and fitted anew for who answers with another reward model."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from mor.alignment import refit as module
from mor.alignment.refit import Refit, next_router
from mor.config import RouterSettings
from mor.federation import messages as m
from mor.federation.ledger import Ledger
from mor.federation.remote import RemoteClient
from mor.federation.server import Server, Settings
from mor.routing.fit import FINGERPRINTS, fingerprints
from mor.routing.router import Router

NAMES = ["documents", "medical", "scenes"]


def client(name: str, fingerprint: str | None) -> RemoteClient:
    return RemoteClient(name, lambda data: m.encode(m.Failure("internal")), Ledger(), fingerprint)


@pytest.mark.parametrize(
    ("before", "seen", "now", "changed"),
    [
        (None, {"x": "a", "y": "b"}, {"x": "a", "y": "b"}, []),  # the first round
        ({"x": "a", "y": "b"}, {"x": "a", "y": "b"}, {"x": "a", "y": "b"}, []),
        ({"x": "a", "y": "b"}, {"x": "a", "y": "c"}, {"x": "a", "y": "c"}, ["y"]),
        ({"x": "a"}, {"x": "a", "y": "b"}, {"x": "a", "y": "b"}, ["y"]),  # a newcomer
        ({"x": "a", "y": "b"}, {"x": "a", "y": None}, {"x": "a", "y": "b"}, []),  # away, or not asked since a restart
    ],
)
def test_another_reward_model_is_noticed(
    before: dict[str, str] | None, seen: dict[str, str | None], now: dict[str, str], changed: list[str], tmp_path: Path
) -> None:
    if before is not None:
        (tmp_path / FINGERPRINTS).write_text(json.dumps(before))
    assert fingerprints([client(*one) for one in seen.items()], tmp_path, []) == (now, changed)


def test_a_reward_model_that_was_swapped_after_the_router_stage_is_noticed(tmp_path: Path) -> None:
    (tmp_path / FINGERPRINTS).write_text(json.dumps({"x": "a" * 16}))  # as the router stage saw it
    swapped = RemoteClient("x", lambda data: m.encode(m.HelloReply("b" * 16)), Ledger())
    swapped.hello()
    assert fingerprints([swapped], tmp_path, []) == ({"x": "b" * 16}, ["x"])


def test_who_was_absent_and_answers_again_is_new_to_the_router(tmp_path: Path) -> None:
    def hello(data: bytes) -> bytes:
        return m.encode(m.HelloReply("f" * 16))

    clients = [RemoteClient("here", hello, Ledger()), RemoteClient("back", hello, Ledger()), client("away", None)]
    assert fingerprints(clients, tmp_path, ["back", "away"]) == ({"back": "f" * 16}, ["back"])


@pytest.mark.parametrize(
    ("kind", "number", "pairs", "changed", "called"),
    [
        ("means", 1, 48, [], ["refit old, trust 1.0"]),
        ("means", 1, 48, ["scenes"], ["fit anew"]),
        ("online", 0, 48, [], ["refit old, trust 0.0"]),
        ("online", 1, 48, [], ["refit old, trust 1.0"]),
        ("online", 1, 48, ["scenes"], ["refit unfitted, trust 0.0"]),
        ("means", 1, 0, ["scenes"], []),
        ("uniform", 1, 48, ["scenes"], []),
    ],
)
def test_what_becomes_of_the_router(
    kind: str,
    number: int,
    pairs: int,
    changed: list[str],
    called: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[str] = []
    old, unfitted, fitted = (Router(kind, NAMES) for _ in range(3))

    def refit(router: Router, *_: object, trust: float, **__: object) -> tuple[Router, Refit]:
        calls.append(f"refit {'old' if router is old else 'unfitted'}, trust {trust}")
        return fitted, Refit(3, 0.5)

    monkeypatch.setattr(module, "fit_and_control", lambda *_: (calls.append("fit anew"), (fitted, None))[1])
    monkeypatch.setattr(module, "refit_router", refit)
    monkeypatch.setattr(module, "unfitted", lambda *_: unfitted)
    monkeypatch.setattr(module, "load_policy", MagicMock())
    monkeypatch.setattr(Server, "load_base", MagicMock())
    settings = Settings(router=RouterSettings(kind=kind, refit_pairs=pairs))  # type: ignore[arg-type]
    server = Server("base", [], [], torch.zeros(0, 2), settings, Ledger())
    router, _ = next_router(number, server, old, changed, Path("adapter"))
    assert calls == called
    assert router is (fitted if called else old)
    assert ("scenes" in capsys.readouterr().err) == bool(called and changed)
