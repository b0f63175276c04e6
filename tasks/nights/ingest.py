"""Deliveries: what clients drop into their inbox is checked, judged for drift, archived and merged into their data.

A delivery is ``<inbox>/<client>/<name>.jsonl``, its images beside it. Write it under another suffix and rename it when it
is whole. Each becomes a folder ``data/archive/<client>/<digest>/``, named by the first 8 digits of its digest:

====================  ==========================================================================
``delivery.jsonl``    the rows, byte for byte as they came; its images at their relative paths
``quarantine.jsonl``  rows that could not be used, with their reasons
``delivery.json``     what became of it: ``Delivery``
====================  ==========================================================================

What a kill can't spoil:

1. the folder is filled beside its place and renamed: from then on the delivery is known by its digest, before that
   nothing has happened;
2. its rows go into ``data/clients/<client>/preferences.jsonl`` in one rename, images first, and only those that the client
   does not have: doing it again adds nothing;
3. the inbox is cleared of what the archive holds (a picture that no readable row names stays there);
4. ``finished`` is set. Whatever lacks it is taken up at 2 by the next call.

Images are stored under a name made of their bytes, so none overwrites another. A delivery that drifted too far stops at 1
in the state ``held``, until a person releases or discards it.

A delivery is a stranger's: files are opened without leaving the inbox (``tasks.nights.inbox``), ``nightly.delivery`` bounds
what is taken, and what is told of it (reasons, drift, console) holds lines, counts and kinds, never a name or a text.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json
from rich.console import Console

from mor.config import Bounds, Params, UserError, load_params
from mor.data import pictures
from mor.data.drift import Decision, Finding, agreement, compare, decide, image_statistics
from mor.data.schema import Preference, load_images
from mor.fedvqa.write import MARKER
from mor.files import DRAFT, sync, write_whole
from mor.seeds import stream
from mor.text import printable, public_message
from tasks.nights.inbox import ABSENT, CHUNK, Stray, TooLarge, copy, entries, lines, opened, remove
from tasks.project import paths
from tasks.reports.drift_figure import drift_figure
from tasks.stages.validate import DataReport, DataSet, check_delivery, inspect_set, quarantine_text, shared_tables

if TYPE_CHECKING:
    from mor.rewards.model import RewardModel

ROWS, QUARANTINE, RECORD = "delivery.jsonl", "quarantine.jsonl", "delivery.json"
MOST_PICTURES = 500  # read on each side for image statistics
MOST_PAIRS = 300  # ranked on each side by the reward model
MOST_PIXELS = 1 << 26  # decoded at a time
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # others may mean something to DVC or git, beside which the archive lies
NOBODY = "unknown"  # stands for a folder of the inbox that is no client's
State = Literal["merged", "held", "discarded", "empty", "refused"]
Loader = Callable[[str], "RewardModel | None"]
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
        """Where the archive keeps it."""
        return paths.ARCHIVE / self.client / self.name

    def save(self) -> None:
        """Write what became of it, at once."""
        write_whole(self.folder / RECORD, self.text.encode())

    @property
    def text(self) -> str:
        return self.model_dump_json(indent=1) + "\n"

    def shared(self, clients: Iterable[str]) -> Delivery:
        """What others may see of it: without the file's name, and its folder's where that is no client's."""
        client = self.client if self.client in clients else NOBODY
        return self.model_copy(update={"file": "", "name": self.digest[:8] or self.name, "client": client})


@dataclass(frozen=True)
class Pair:
    """A row that can be read; ``content`` is its picture's hash, prompt, chosen and rejected."""

    line: int
    row: Preference
    content: tuple[str, str, str, str]


@dataclass(frozen=True)
class Judged:
    """What is to be known of a delivery's rows."""

    table: pd.DataFrame
    fresh: list[Pair]  # rows to be merged
    known: list[Pair]  # rows that the client has
    duplicates: int
    aside: dict[int, list[str]]  # reasons of bad rows, by line
    reasons: list[str]  # the same, counted

    @property
    def counts(self) -> dict[str, Any]:
        return {
            "rows": len(self.table),
            "accepted": len(self.fresh),
            "duplicates": self.duplicates,
            "quarantined": len(self.aside),
        }


# --- what others call ---------------------------------------------------------------------------------------------------


def ingest(params: Params, night: str, load: Loader | None = None) -> list[Delivery]:
    """Take in all that waits; returns every delivery of this night, those of an interrupted call among them.

    What cannot be taken in stays in the inbox and is told as ``refused``. ``load`` gives a client's last reward model, or
    None; it is the one in ``models/rewards`` unless given.
    """
    intake = Intake(params, night, load or last_reward_model)
    _clear_drafts()
    refused = []
    for delivery in deliveries():
        if not delivery.finished:
            refused += _attempt(intake.finish, delivery, delivery.client, delivery.name, delivery.file, night)
    inbox = Path(params.nightly.inbox)
    for path in waiting(params):
        client = path.name if path.parent == inbox and path.name in params.clients else path.parent.name
        refused += _attempt(intake.take_in, path, client, label(path), path.name, night)
    _clear_drafts()
    found = [told for delivery in deliveries() for told in _of_night(delivery, night)] + refused
    for delivery in found:
        _tell(delivery.shared(params.clients))
    return found


def waiting(params: Params) -> list[Path]:
    """Deliveries in the inbox, in the order in which they are taken in; those in no client's folder and links among them."""
    inbox = Path(params.nightly.inbox)
    found = []
    for path in (inbox / name for name in entries(inbox.resolve())):
        if path.suffix == ".jsonl" or path.is_symlink():
            found.append(path)
        else:
            found += [path / name for name in entries(path) if name.endswith(".jsonl")]
    return sorted(found)


def label(path: Path) -> str:
    """Eight digits that stand for a file that waits, as long as nobody touches it; they do not tell its name."""
    try:
        found = path.lstat()
    except OSError:
        return "gone"
    return hashlib.sha256(f"{found.st_dev} {found.st_ino} {found.st_mtime_ns}".encode()).hexdigest()[:8]


def deliveries() -> list[Delivery]:
    """Every delivery in the archive, by client and the name of its file."""
    records = sorted(path for path in paths.ARCHIVE.glob(f"*/*/{RECORD}") if not path.parent.name.endswith(DRAFT))
    found = [Delivery.model_validate_json(path.read_text(encoding="utf-8")) for path in records]
    return sorted(found, key=lambda delivery: (delivery.client, delivery.file, delivery.name))


def release(name: str) -> Delivery:
    """Merge a held delivery in spite of its drift, its rows checked afresh; raises ``UserError`` if none has that name."""
    held, intake = _held(name), Intake(load_params(paths.PARAMS), "", last_reward_model)
    judged = intake.judge(held.client, held.folder)
    _write_quarantine(held.folder, judged)
    reasons = [f"released; held for: {reason}" for reason in held.reasons if reason not in judged.reasons]
    update = {"state": "merged", "finished": False, "reasons": [*reasons, *judged.reasons], **judged.counts}
    released = held.model_copy(update=update)
    released.save()
    return intake.finish(released, judged)


def discard(name: str) -> Delivery:
    """Decline a held delivery; the archive keeps it. Raises ``UserError`` if none has that name."""
    discarded = _held(name).model_copy(update={"state": "discarded"})
    discarded.save()
    return discarded


def drift_picture(found: Sequence[Delivery]) -> bytes | None:
    """A picture of the deliveries' drift as PNG; None where none was judged."""
    judged = {f"{d.client}: {d.digest[:8]}: {d.decision}": d.drift for d in found if d.drift and d.state != "empty"}
    if not judged:
        return None
    buffer = io.BytesIO()
    drift_figure(judged).savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


# --- taking in -----------------------------------------------------------------------------------------------------------


@dataclass
class Intake:
    """Takes deliveries in, for one night."""

    params: Params
    night: str
    load: Loader

    @cached_property
    def shared(self) -> dict[DataSet, pd.DataFrame]:
        """What no client may have, read once."""
        return shared_tables(self.params.validation)

    def take_in(self, path: Path) -> None:
        """Archive, judge and merge one delivery; raises ``UserError`` where it cannot be read."""
        client = self._client_of(path)
        draft = paths.ARCHIVE / client / f"incoming{DRAFT}"
        try:
            self._take_in(path, client, draft)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def _take_in(self, path: Path, client: str, draft: Path) -> None:
        _snapshot(Path(self.params.nightly.inbox), client, path.name, draft, self.params.nightly.delivery)
        digest = _digest(draft)
        for earlier in deliveries():
            if (earlier.client, earlier.digest) == (client, digest):
                shutil.rmtree(draft)
                again = list(dict.fromkeys([*earlier.again, self.night]))
                once_more = earlier.model_copy(update={"again": again, "file": path.name, "finished": False})
                once_more.save()
                self.finish(once_more)
                return
        judged = self.judge(client, draft)
        findings, notes = self._drift(client, draft, judged, digest)
        decision = decide(findings)
        state: State = "empty" if not judged.fresh else "held" if decision == "stop" else "merged"
        loud = [f"{finding.name}: {finding.text}" for finding in findings if finding.decision == decision != "continue"]
        delivery = Delivery(
            client=client, name=digest[:8], digest=digest, file=path.name, night=self.night, state=state,
            finished=False, reasons=[*loud, *judged.reasons, *notes], decision=decision, drift=findings, **judged.counts,
        )  # fmt: skip
        _write_quarantine(draft, judged)
        (draft / RECORD).write_text(delivery.text, encoding="utf-8")
        _settle_on_disk(draft)
        draft.rename(delivery.folder)  # from here on it is taken in
        sync(delivery.folder.parent)
        self.finish(delivery, judged)

    def finish(self, delivery: Delivery, judged: Judged | None = None) -> Delivery:
        """Merge what is to be merged, clear the inbox, and mark the delivery as finished; may be repeated."""
        if delivery.state == "merged":
            _merge(delivery, (judged or self.judge(delivery.client, delivery.folder)).fresh)
        _clear_inbox(Path(self.params.nightly.inbox), delivery, self.params.nightly.delivery)
        finished = delivery.model_copy(update={"finished": True})
        finished.save()
        return finished

    def judge(self, client: str, folder: Path) -> Judged:
        """Rows of ``folder`` that are bad, known or new; what clashes with the client's rows is the delivery's fault."""
        settings = self.params.validation
        inbox = Path(self.params.nightly.inbox) / client
        table = inspect_set(DataSet(f"inbox.{client}", "inbox", folder / ROWS, folder), settings)
        known, pairs = self._present(client), _pairs(table)
        twins = _twins(known, pairs)
        rest = _with_clashes(table[~table["line"].isin(list(twins))].reset_index(drop=True), known, pairs)
        aside: dict[int, list[str]] = {}
        reasons: list[str] = []
        if len(rest):
            verdict = check_delivery(DataSet(f"inbox.{client}", "inbox", folder / ROWS, inbox), rest, self.shared, settings)
            aside = verdict.reasons
            reasons = _counted(verdict)
        aside |= {line: aside[first] for line, first in twins.items() if first in aside}  # no better than its twin
        duplicates = [line for line in twins if line not in aside]
        if duplicates:
            reasons.append(f"{_rows(len(duplicates))} known already")
        fresh = [pair for pair in pairs if pair.line not in aside and pair.line not in twins]
        return Judged(table, fresh, known, len(duplicates), aside, reasons)

    def _client_of(self, path: Path) -> str:
        inbox, client = Path(self.params.nightly.inbox), path.parent.name
        if path.parent == inbox and path.is_symlink():
            raise DeliveryError(f"{inbox}: a symbolic link in the place of a client's folder; put a folder there")
        if path.parent == inbox or client not in self.params.clients:
            names = ", ".join(self.params.clients)
            raise DeliveryError(f"{inbox}: it lies in no client's folder; move it to {inbox}/<client>/, one of {names}")
        try:
            path.name.encode()
        except UnicodeEncodeError:
            raise DeliveryError(f"{inbox}/{client}: its name is not UTF-8; rename it") from None
        if client in self.params.fedvqa.styles and not paths.client_preferences(client).exists():
            missing = paths.client_preferences(client)
            fix = "`dvc pull` it or run the benchmark stage"
            raise DeliveryError(f"{inbox}/{client}: {missing} is not there to be added to; {fix}")
        return client

    def _present(self, client: str) -> list[Pair]:
        """Rows that the client has."""
        file, folder = paths.client_preferences(client), paths.client_folder(client)
        if not file.exists() or not file.read_bytes().strip():
            return []
        return _pairs(inspect_set(DataSet(f"clients.{client}", "clients", file, folder), self.params.validation))

    def _drift(self, client: str, folder: Path, judged: Judged, digest: str) -> tuple[list[Finding], list[str]]:
        """How the new rows differ from those that the client has, and what could not be judged."""
        limits = self.params.drift
        if min(len(judged.fresh), len(judged.known)) < limits.least_rows:
            few = f"drift was not judged: fewer than {limits.least_rows} rows"
            return [], [few] if judged.fresh and judged.known else []
        rng = stream(self.params.seed, "drift", client, digest)
        sides = ((paths.client_folder(client), judged.known), (folder, judged.fresh))
        old, new = (_columns(root, _some([pair.row for pair in pairs], MOST_PICTURES, rng)) for root, pairs in sides)
        rows = [[pair.row for pair in pairs] for _, pairs in sides]
        findings = compare(rows[0], rows[1], (old, new), limits)
        if (model := self.load(client)) is None:
            return findings, ["drift of preferences was not judged: there is no reward model yet"]
        before = _agrees(model, paths.client_folder(client), _some(self._kept_back(client), MOST_PAIRS, rng))
        after = _agrees(model, folder, _some(rows[1], MOST_PAIRS, rng))
        if before and after:
            findings.append(agreement(before, after, limits))
        return findings, []

    def _kept_back(self, client: str) -> list[Preference]:
        """Pairs that the client's reward model was not trained on."""
        from tasks.project.clients import pairs_of  # imports torch

        return pairs_of(self.params, client)[1]


def last_reward_model(client: str) -> RewardModel | None:
    """The reward model that the client's stage left behind, or None for a client that never had one.

    Raises ``DeliveryError`` where there was one and it is away: poisoned pairs must not slip in while it is trained anew.
    """
    folder = paths.reward_folder(client)
    if (folder / "reward.json").exists() and paths.validated_client(client).exists():
        from mor.rewards.model import load_reward_model

        return load_reward_model(folder)
    recorded = yaml.safe_load(paths.DVC_LOCK.read_text()) if paths.DVC_LOCK.exists() else {}
    if f"reward@{client}" in (recorded.get("stages") or {}):
        raise DeliveryError(
            f"{client}: {folder}, to judge preferences with, is in dvc.lock but not on disk; it waits until the stage has run"
            " (or `dvc pull`)"
        )
    return None


def _clear_drafts() -> None:
    """Remove what was being copied when a call ended before its time."""
    for leftover in paths.ARCHIVE.glob(f"*/*{DRAFT}"):
        shutil.rmtree(leftover)


def _attempt(do: Callable[..., object], what: object, client: str, name: str, file: str, night: str) -> list[Delivery]:
    """Do it; a delivery that cannot be taken in is told as refused, and the others are not kept waiting."""
    try:
        do(what)
    except Exception as error:  # whatever it is, it must not cost the other clients their night
        if not isinstance(error, UserError):
            console.print("".join(traceback.format_tb(error.__traceback__)), markup=False, highlight=False)  # code, no values
        refused = {"client": printable(client), "name": name, "file": printable(file), "reasons": [public_message(error)]}
        return [Delivery(night=night, state="refused", **refused)]  # type: ignore[arg-type]
    return []


def _of_night(delivery: Delivery, night: str) -> Iterator[Delivery]:
    """The delivery, as it first came or as it came again that night."""
    if delivery.night == night:
        yield delivery
    elif night in delivery.again:
        reason = f"the same as came in night {delivery.night}, which is {delivery.state}"
        update = {"accepted": 0, "quarantined": 0, "duplicates": delivery.rows}
        yield delivery.model_copy(update={"state": "empty", "night": night, "reasons": [reason], "drift": [], **update})


def _held(name: str) -> Delivery:
    """The held delivery of that name or those 8 digits, which may be given as ``client/name``."""
    held = [delivery for delivery in deliveries() if delivery.state == "held"]
    own = [{delivery.name, delivery.digest[:8]} for delivery in held]
    found = [d for d, names in zip(held, own, strict=True) if name in names | {f"{d.client}/{each}" for each in names}]
    if len(found) != 1:
        names = ", ".join(f"{delivery.client}/{printable(delivery.name)}" for delivery in held) or "none"
        raise DeliveryError(f"{printable(name)}: {len(found)} held deliveries have that name; expected one of: {names}")
    return found[0]


def _tell(delivery: Delivery) -> None:
    colour = {"merged": "green", "empty": "default"}.get(delivery.state, "yellow")
    counts = f"{delivery.rows} rows, {delivery.accepted} new, {delivery.duplicates} known, {delivery.quarantined} set aside"
    judged = f"; drift: {delivery.decision}" if delivery.drift else ""
    console.print(f"{delivery.client}: {delivery.name}: {delivery.state}", style=colour, end="", highlight=False, markup=False)
    console.print(f": {counts}{judged}", highlight=False, markup=False)
    for reason in delivery.reasons:
        console.print(f"  {reason}", highlight=False, markup=False)


# --- rows ----------------------------------------------------------------------------------------------------------------


def _pairs(table: pd.DataFrame) -> list[Pair]:
    """Rows of a raw file whose text and picture can be read."""
    found = []
    for line, text, picture in zip(table["line"], table["text"], table["image_hash"], strict=True):
        try:
            row = Preference.model_validate_json(text)
        except ValidationError:
            continue
        if isinstance(picture, str):
            found.append(Pair(int(line), row, (picture, row.prompt.strip(), row.chosen.strip(), row.rejected.strip())))
    return found


def _twins(known: Sequence[Pair], pairs: Sequence[Pair]) -> dict[int, int]:
    """Lines whose content is known, each with the delivered line that had it before; 0 where the client has it."""
    seen, twins = {pair.content: 0 for pair in known}, {}
    for pair in pairs:
        if (first := seen.setdefault(pair.content, pair.line)) != pair.line:
            twins[pair.line] = first
    return twins


def _with_clashes(table: pd.DataFrame, known: Sequence[Pair], pairs: Sequence[Pair]) -> pd.DataFrame:
    """The table with what clashes with a client's rows: the opposite preference, and an id of something else."""
    ids, by_content = {pair.row.id: pair.line for pair in known}, {pair.content: pair.line for pair in known}
    contents = {pair.line: pair.content for pair in pairs}
    taken, against = [], []
    for line, name, inside in zip(table["line"], table["id"], table["contradicted_by"], strict=True):
        picture, prompt, chosen, rejected = contents.get(int(line), ("", "", "", ""))
        opposite = by_content.get((picture, prompt, rejected, chosen))
        against.append(f"line {opposite} of the client's rows" if opposite else inside)
        taken.append(f"line {ids[name]} of the client's rows" if name in ids else None)
    columns = {"contradicted_by": against, "id_taken": taken}
    return table.assign(**{name: pd.Series(values, dtype=object) for name, values in columns.items()})


def _counted(verdict: DataReport) -> list[str]:
    return [f"{_rows(len(fault.lines))}: expected that {fault.claim}, got {fault.got[0]}" for fault in verdict.faults]


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"


def _some(rows: Sequence[Preference], most: int, rng: np.random.Generator) -> list[Preference]:
    """At most so many of the rows."""
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in sorted(rng.choice(len(rows), most, replace=False))]


def _columns(root: Path, rows: Sequence[Preference]) -> dict[str, list[float]]:
    """Statistics of every picture, by name."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in image_statistics(load_images(root, [row])[0]).items():
            columns.setdefault(name, []).append(value)
    return columns


def _agrees(model: RewardModel, root: Path, rows: Sequence[Preference]) -> list[bool]:
    """Whether the model ranks each pair as its annotator did; pairs that it cannot score are left out."""
    agreed: list[bool] = []
    for some in _portions(root, rows):
        images, prompts = load_images(root, some), [row.prompt for row in some]
        chosen, rejected = (model.score(prompts, images, [getattr(r, side) for r in some]) for side in ("chosen", "rejected"))
        agreed += [up > down for up, down in zip(chosen, rejected, strict=True) if up is not None and down is not None]
    return agreed


def _portions(root: Path, rows: Sequence[Preference]) -> Iterator[list[Preference]]:
    """The rows in portions whose pictures have no more than ``MOST_PIXELS`` together: few large ones, or all small ones."""
    portion: list[Preference] = []
    held = 0
    for row in rows:
        with pictures.opened(root / row.image) as picture:
            size = picture.width * picture.height
        if portion and held + size > MOST_PIXELS:
            yield portion
            portion, held = [], 0
        portion.append(row)
        held += size
    if portion:
        yield portion


# --- files ---------------------------------------------------------------------------------------------------------------


def _snapshot(inbox: Path, client: str, file: str, draft: Path, most: Bounds) -> None:
    """Copy rows and images of a delivery into a fresh folder; what is judged and kept is this copy."""
    place = f"{inbox}/{client}"
    try:
        draft.mkdir(parents=True)
        with opened(inbox, f"{client}/{file}") as rows:
            _copy_rows(rows, draft / ROWS, most)
        _copy_pictures(inbox / client, _named(draft / ROWS), draft, most)
    except DeliveryError as error:
        raise DeliveryError(f"{place}: {error}") from None
    except TooLarge as error:
        fix = "deliver it in parts, or change nightly.delivery in params.yaml"
        raise DeliveryError(f"{place}: cannot be copied to the archive: {error}; {fix}") from None
    except Stray as error:
        said = "nothing outside the inbox is read; put the file itself there"
        raise DeliveryError(f"{place}: cannot be copied to the archive: it is {error}; {said}") from None
    except OSError as error:
        reason = f"{error.strerror}; correct that, it is tried again"
        raise DeliveryError(f"{place}: cannot be copied to the archive: {reason}") from None


def _copy_rows(source: BinaryIO, target: Path, most: Bounds) -> None:
    """Copy the rows byte for byte; raises ``TooLarge`` as soon as they are."""
    size = 0
    with target.open("xb") as file:
        for number, line in enumerate(lines(source, most.line_bytes), 1):
            size += len(line)
            if number > most.rows:
                raise TooLarge(f"more than {most.rows} rows")
            if size > most.rows_bytes:
                raise TooLarge(f"more than {most.rows_bytes} bytes of rows")
            file.write(line)


def _copy_pictures(folder: Path, named: dict[str, int], draft: Path, most: Bounds) -> None:
    """Copy the pictures that are there to the same paths below ``draft``."""
    if len(named) > most.pictures:
        raise TooLarge(f"its rows name {len(named)} pictures, more than {most.pictures}")
    left, area = most.pictures_bytes, most.pictures_pixels
    for image, line in named.items():
        if (taken := image.partition("/")[0]).removesuffix(DRAFT) in (ROWS, QUARANTINE, RECORD):
            raise DeliveryError(f"line {line}: a picture is named {taken}, which the archive uses; give it another name")
        try:
            with opened(folder.parent, f"{folder.name}/{image}") as picture:
                if not _is_plain(image):
                    fit = f"must end with one of {', '.join(SUFFIXES)}, and no part begin with a dot"
                    raise DeliveryError(f"line {line}: a picture's name {fit}")
                (draft / image).parent.mkdir(parents=True, exist_ok=True)
                left -= copy(picture, draft / image, min(left, most.picture_bytes))
            if (area := area - _area(draft / image)) < 0:
                raise DeliveryError(f"line {line}: with its picture all have more than {most.pictures_pixels} pixels")
        except ABSENT:
            continue
        except Stray as error:
            raise Stray(f"{error} that line {line} names") from None
        except TooLarge as error:
            raise TooLarge(f"the picture of line {line} has {error}, or all have more than {most.pictures_bytes}") from None


def _area(picture: Path) -> int:
    """Pixels by the picture's header; 0 for what is no picture, which the checks of its row will say."""
    try:
        with pictures.opened(picture) as image:
            return image.width * image.height
    except Exception:  # decoders raise whatever a broken file provokes
        return 0


def _is_plain(image: str) -> bool:
    """Whether a picture's path means nothing to DVC or git, which look for names such as ``dvc.yaml`` and ``.gitignore``."""
    return image.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in image.split("/"))


def named_images(rows: Path) -> list[str]:
    """Images that the lines name, as paths inside the delivery's folder, sorted; lines that cannot be read name none."""
    return list(_named(rows))


def _named(rows: Path) -> dict[str, int]:
    """The same, each with the first line that names it."""
    found: dict[str, int] = {}
    for number, line in enumerate(rows.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if image := _image_of(line):
            found.setdefault(image, number)
    return dict(sorted(found.items()))


def _image_of(line: bytes) -> str:
    """The picture that a line names, as a path inside its folder; empty where it names none, or one outside."""
    try:
        values = from_json(line)
    except ValueError:
        return ""
    image = values.get("image") if isinstance(values, dict) else None
    if not isinstance(image, str) or not image or "\0" in image or pictures.leaves(image):
        return ""
    plain = os.path.normpath(image)
    return "" if plain == "." else plain


def _digest(folder: Path) -> str:
    """SHA-256 of the rows and of every image that they name below ``folder``, a copy of our own."""
    digest = hashlib.sha256((folder / ROWS).read_bytes())
    for image in named_images(folder / ROWS):
        content = "missing"
        with suppress(*ABSENT, Stray), opened(folder, image) as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        digest.update(f"\n{image}\n{content}".encode())
    return digest.hexdigest()


def _write_quarantine(folder: Path, judged: Judged) -> None:
    if judged.aside:
        write_whole(folder / QUARANTINE, quarantine_text(judged.table, judged.aside).encode())
    else:
        (folder / QUARANTINE).unlink(missing_ok=True)


def _merge(delivery: Delivery, pairs: Sequence[Pair]) -> None:
    """Add rows to the client's, their images first. The folder is the client's own from then on (``MARKER``)."""
    if not pairs:
        return
    home = paths.client_folder(delivery.client)
    (home / "images").mkdir(parents=True, exist_ok=True)
    (home / MARKER).unlink(missing_ok=True)  # first of all: the benchmark stage must not write over what is added
    lines = []
    for pair in pairs:
        source = delivery.folder / os.path.normpath(pair.row.image)
        content = source.read_bytes()
        suffix = source.suffix.lower()
        name = f"images/{hashlib.sha256(content).hexdigest()[:16]}{suffix if suffix in SUFFIXES else ''}"
        if not (home / name).exists():
            write_whole(home / name, content)
        row = pair.row.model_copy(update={"image": name}).model_dump(exclude_defaults=True)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    file = paths.client_preferences(delivery.client)
    before = file.read_bytes() if file.exists() else b""
    ended = before if before.endswith(b"\n") or not before else before + b"\n"
    write_whole(file, ended + "".join(lines).encode())


def _clear_inbox(inbox: Path, delivery: Delivery, most: Bounds) -> None:
    """Remove what the archive holds, but no image that another file there names, and no other delivery of the same name."""
    home = delivery.client
    images = named_images(delivery.folder / ROWS)
    try:
        whole = _same(inbox, f"{home}/{delivery.file}", delivery.folder, ROWS)
        if whole and all(_alike(inbox, f"{home}/{image}", delivery.folder, image) for image in images):
            remove(inbox, f"{home}/{delivery.file}")
        needed = _needed(inbox, home, most)
        for image in images:
            if needed is not None and image not in needed and _same(inbox, f"{home}/{image}", delivery.folder, image):
                remove(inbox, f"{home}/{image}")
    except (OSError, Stray) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is {error} now"
        raise DeliveryError(f"{inbox}/{home}: cannot be removed from the inbox: {reason}; make the folder writable") from None


def _needed(inbox: Path, client: str, most: Bounds) -> set[str] | None:
    """Pictures that files there name, also those still being written; None where one is too large to say."""
    found: set[str] = set()
    for name in entries(inbox.resolve() / client):
        if Path(name).suffix not in (".jsonl", DRAFT, ".tmp", ".part"):
            continue
        try:
            with opened(inbox, f"{client}/{name}") as file:
                for number, line in enumerate(lines(file, most.line_bytes), 1):
                    if number > most.rows:
                        return None
                    found.add(_image_of(line.removeprefix(codecs.BOM_UTF8)))
        except TooLarge:
            return None
        except (*ABSENT, Stray):
            continue
    return found


def _same(inbox: Path, name: str, folder: Path, kept: str) -> bool:
    """Whether a file of the inbox and one of the archive hold the same bytes; False where one is not there or is no file."""
    with suppress(*ABSENT, Stray), opened(inbox, name) as one, opened(folder, kept) as other:
        while (chunk := one.read(CHUNK)) == other.read(CHUNK):
            if not chunk:
                return True
    return False


def _alike(inbox: Path, name: str, folder: Path, kept: str) -> bool:
    """Whether both are the same, or neither is there."""
    return _same(inbox, name, folder, kept) or not (_is_there(inbox, name) or _is_there(folder, kept))


def _is_there(root: Path, name: str) -> bool:
    with suppress(*ABSENT, Stray), opened(root, name):
        return True
    return False


def _settle_on_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        sync(path)
