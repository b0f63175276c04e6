"""Taking deliveries in: each is copied, checked, judged for drift, archived and merged into its client's data.

What a kill can't spoil:

1. the archive's folder is filled beside its place and renamed: from then on the delivery is known by its digest, before
   that nothing has happened;
2. its rows go into ``data/clients/<client>/preferences.jsonl`` in one rename, images first, and only those that the client
   does not have: doing it again adds nothing;
3. the inbox is cleared of what the archive holds (a picture that no readable row names stays there);
4. ``finished`` is set. Whatever lacks it is taken up at 2 by the next call.

Images are stored under a name made of their bytes, so none overwrites another. A delivery that drifted too far stops at 1
in the state ``held``, until a person releases or discards it.

A delivery is a stranger's: files are opened without leaving the inbox (``tasks.nights.inbox``), and ``nightly.delivery``
bounds what is taken.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mor.config import Params
from mor.data.drift import decide
from mor.errors import UserError
from mor.fedvqa.write import MARKER
from mor.files import DRAFT, sync, sync_below, write_whole
from mor.text import printable, public_message
from tasks.nights.archive import SUFFIXES, clear_inbox, content_digest, copy_delivery
from tasks.nights.deliveries import RECORD, Delivery, DeliveryError, archived_deliveries, console
from tasks.nights.drift_check import Loader, find_drift, last_reward_model
from tasks.nights.inbox import visible_names
from tasks.nights.rows import CheckedRows, ReadableRow, RowChecks, as_line
from tasks.project import paths


def take_in_all(params: Params, night: str, load: Loader | None = None) -> list[Delivery]:
    """Take in all that waits; returns every delivery of this night, those of an interrupted call among them.

    What cannot be taken in stays in the inbox and is told as ``refused``. ``load`` gives a client's last reward model, or
    None; it is the one in ``models/rewards`` unless given.
    """
    intake = Intake(params, night, load or last_reward_model)
    inbox = Path(params.nightly.inbox)
    _clear_drafts()
    refused = []
    for delivery in archived_deliveries():
        if not delivery.finished:
            refused += _attempt(partial(intake.finish, delivery), delivery.client, delivery.name, delivery.file, night)
    for path in waiting(inbox):
        client = path.name if path.parent == inbox and path.name in params.clients else path.parent.name
        refused += _attempt(partial(intake.take_in, path), client, file_label(path), path.name, night)
    _clear_drafts()
    found = [seen for delivery in archived_deliveries() if (seen := delivery.in_night(night))] + refused
    for delivery in found:
        delivery.public_view(params.clients).print()
    return found


def waiting(inbox: Path) -> list[Path]:
    """Deliveries in the inbox, in the order in which they are taken in; those in no client's folder and links among them."""
    found = []
    for path in (inbox / name for name in visible_names(inbox.resolve())):
        if path.suffix == ".jsonl" or path.is_symlink():
            found.append(path)
        else:
            found += [path / name for name in visible_names(path) if name.endswith(".jsonl")]
    return sorted(found)


def file_label(path: Path) -> str:
    """Eight digits that stand for a file that waits, as long as nobody touches it; they do not tell its name."""
    try:
        found = path.lstat()
    except OSError:
        return "gone"
    return hashlib.sha256(f"{found.st_dev} {found.st_ino} {found.st_mtime_ns}".encode()).hexdigest()[:8]


class Intake:
    """Takes deliveries in, for one night."""

    def __init__(self, params: Params, night: str, load: Loader) -> None:
        self.params, self.night, self.load = params, night, load
        self.inbox = Path(params.nightly.inbox)
        self.checks = RowChecks(self.inbox, params.validation)

    def take_in(self, path: Path) -> None:
        """Archive, judge and merge one delivery; raises ``UserError`` where it cannot be read."""
        client = client_of(path, self.params)
        draft = paths.ARCHIVE / client / f"incoming{DRAFT}"
        try:
            copy_delivery(self.inbox, client, path.name, draft, self.params.nightly.delivery)
            digest = content_digest(draft)
            earlier = [found for found in archived_deliveries() if (found.client, found.digest) == (client, digest)]
            if earlier:
                shutil.rmtree(draft)
                again = list(dict.fromkeys([*earlier[0].again, self.night]))
                delivery, rows = earlier[0].saved_with(again=again, file=path.name, finished=False), None
            else:
                delivery, rows = self._archive(client, path.name, draft, digest)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self.finish(delivery, rows)

    def _archive(self, client: str, file: str, draft: Path, digest: str) -> tuple[Delivery, CheckedRows]:
        """Judge a new delivery and put it into the archive."""
        rows = self.checks.check(client, draft)
        findings, notes = find_drift(self.params, client, draft, rows, digest, self.load)
        decision = decide(findings)
        loud = [f"{finding.name}: {finding.text}" for finding in findings if finding.decision == decision != "continue"]
        delivery = Delivery(
            client=client, name=digest[:8], digest=digest, file=file, night=self.night,
            state="empty" if not rows.fresh else "held" if decision == "stop" else "merged",
            finished=False, reasons=[*loud, *rows.reasons, *notes], decision=decision, drift=findings, **rows.counts,
        )  # fmt: skip
        rows.write_quarantine(draft)
        (draft / RECORD).write_text(delivery.text, encoding="utf-8")
        sync_below(draft)
        draft.rename(delivery.folder)  # from here on it is taken in
        sync(delivery.folder.parent)
        return delivery, rows

    def finish(self, delivery: Delivery, rows: CheckedRows | None = None) -> Delivery:
        """Merge what is to be merged, clear the inbox, and mark the delivery as finished; may be repeated."""
        if delivery.state == "merged":
            merge_rows(delivery, (rows or self.checks.check(delivery.client, delivery.folder)).fresh)
        clear_inbox(self.inbox, delivery, self.params.nightly.delivery)
        return delivery.saved_with(finished=True)


def client_of(path: Path, params: Params) -> str:
    """The client in whose folder a delivery waits; raises ``DeliveryError`` where there is none, or no data to add to."""
    inbox, client = Path(params.nightly.inbox), path.parent.name
    if path.parent == inbox and path.is_symlink():
        raise DeliveryError(f"{inbox}: a symbolic link in the place of a client's folder; put a folder there")
    if path.parent == inbox or client not in params.clients:
        names = ", ".join(params.clients)
        raise DeliveryError(f"{inbox}: it lies in no client's folder; move it to {inbox}/<client>/, one of {names}")
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise DeliveryError(f"{inbox}/{client}: its name is not UTF-8; rename it") from None
    if client in params.fedvqa.styles and not paths.client_preferences(client).exists():
        missing = f"{paths.client_preferences(client)} is not there to be added to"
        raise DeliveryError(f"{inbox}/{client}: {missing}; `dvc pull` it or run the fedvqa stage")
    return client


def merge_rows(delivery: Delivery, rows: Sequence[ReadableRow]) -> None:
    """Add rows to the client's, their images first. The folder is the client's own from then on (``MARKER``)."""
    if not rows:
        return
    home = paths.client_folder(delivery.client)
    (home / "images").mkdir(parents=True, exist_ok=True)
    (home / MARKER).unlink(missing_ok=True)  # first of all: the stage that made the folder must not write over what is added
    lines = []
    for row in (row.row for row in rows):
        name = _store_image(delivery.folder / os.path.normpath(row.image), home)
        lines.append(as_line(row.model_copy(update={"image": name})))
    file = paths.client_preferences(delivery.client)
    before = file.read_bytes() if file.exists() else b""
    write_whole(file, before + b"\n" * (before[-1:] not in (b"", b"\n")) + "".join(lines).encode())


def _store_image(source: Path, home: Path) -> str:
    """Copy an image under a name made of its bytes into the client's folder; returns its path there."""
    content, suffix = source.read_bytes(), source.suffix.lower()
    name = f"images/{hashlib.sha256(content).hexdigest()[:16]}{suffix if suffix in SUFFIXES else ''}"
    if not (home / name).exists():
        write_whole(home / name, content)
    return name


def _attempt(do: Callable[[], object], client: str, name: str, file: str, night: str) -> list[Delivery]:
    """Do it; a delivery that cannot be taken in is told as refused, and the others are not kept waiting."""
    try:
        do()
    except Exception as error:  # whatever it is, it must not cost the other clients their night
        if not isinstance(error, UserError):
            console.print("".join(traceback.format_tb(error.__traceback__)), markup=False, highlight=False)  # code, no values
        client, file, why = printable(client), printable(file), [public_message(error)]
        return [Delivery(client=client, name=name, file=file, night=night, state="refused", reasons=why)]
    return []


def _clear_drafts() -> None:
    """Remove what was being copied when a call ended before its time."""
    for leftover in paths.ARCHIVE.glob(f"*/*{DRAFT}"):
        shutil.rmtree(leftover)


# --- deliveries that drifted too far: a person releases or discards them -----------------------------------------------


def held_deliveries() -> list[Delivery]:
    """Those that wait for a person."""
    return [delivery for delivery in archived_deliveries() if delivery.state == "held"]


def release(name: str, params: Params) -> Delivery:
    """Merge a held delivery in spite of its drift, its rows checked afresh; raises ``UserError`` if none has that name."""
    held, intake = _find(name), Intake(params, "", last_reward_model)
    rows = intake.checks.check(held.client, held.folder)
    rows.write_quarantine(held.folder)
    reasons = [f"released; held for: {reason}" for reason in held.reasons if reason not in rows.reasons]
    released = held.saved_with(state="merged", finished=False, reasons=[*reasons, *rows.reasons], **rows.counts)
    return intake.finish(released, rows)


def discard(name: str) -> Delivery:
    """Decline a held delivery; the archive keeps it. Raises ``UserError`` if none has that name."""
    return _find(name).saved_with(state="discarded")


def _find(name: str) -> Delivery:
    """The held delivery of that name or those 8 digits, which may be given as ``client/name``."""
    held = held_deliveries()
    own = [{delivery.name, delivery.digest[:8]} for delivery in held]
    found = [d for d, names in zip(held, own, strict=True) if name in names | {f"{d.client}/{each}" for each in names}]
    if len(found) != 1:
        names = ", ".join(f"{delivery.client}/{printable(delivery.name)}" for delivery in held) or "none"
        raise DeliveryError(f"{printable(name)}: {len(found)} held deliveries have that name; expected one of: {names}")
    return found[0]
