"""Deliveries that drifted too far: a person releases or discards them."""

from __future__ import annotations

from mor.config import Params
from mor.text import printable
from tasks.nights.deliveries import Delivery, DeliveryError, archived_deliveries
from tasks.nights.drift_check import last_reward_model
from tasks.nights.intake import Intake


def held_deliveries() -> list[Delivery]:
    """Those that wait for a person."""
    return [delivery for delivery in archived_deliveries() if delivery.state == "held"]


def release(name: str, params: Params) -> Delivery:
    """Merge a held delivery in spite of its drift, its rows checked afresh; raises ``UserError`` if none has that name."""
    held, intake = _find(name), Intake(params, "", last_reward_model)
    rows = intake.checks.check(held.client, held.folder)
    rows.write_quarantine(held.folder)
    reasons = [f"released; held for: {reason}" for reason in held.reasons if reason not in rows.reasons]
    update = {"state": "merged", "finished": False, "reasons": [*reasons, *rows.reasons], **rows.counts}
    released = held.model_copy(update=update)
    released.save()
    return intake.finish(released, rows)


def discard(name: str) -> Delivery:
    """Decline a held delivery; the archive keeps it. Raises ``UserError`` if none has that name."""
    discarded = _find(name).model_copy(update={"state": "discarded"})
    discarded.save()
    return discarded


def _find(name: str) -> Delivery:
    """The held delivery of that name or those 8 digits, which may be given as ``client/name``."""
    held = held_deliveries()
    own = [{delivery.name, delivery.digest[:8]} for delivery in held]
    found = [d for d, names in zip(held, own, strict=True) if name in names | {f"{d.client}/{each}" for each in names}]
    if len(found) != 1:
        names = ", ".join(f"{delivery.client}/{printable(delivery.name)}" for delivery in held) or "none"
        raise DeliveryError(f"{printable(name)}: {len(found)} held deliveries have that name; expected one of: {names}")
    return found[0]
