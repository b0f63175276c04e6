"""The rows of a delivery: which can be read, which the client has, which are bad, and which are new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from mor.config import Validation
from mor.data.schema import Preference
from mor.files import write_whole
from tasks.nights.deliveries import QUARANTINE, ROWS
from tasks.project import paths
from tasks.stages.validate import DataSet, check_delivery, inspect_set, quarantine_text, shared_tables


@dataclass(frozen=True)
class ReadableRow:
    """A row that can be read; ``content`` is its picture's hash, prompt, chosen and rejected."""

    line: int
    row: Preference
    content: tuple[str, str, str, str]


@dataclass(frozen=True)
class CheckedRows:
    """What is to be known of a delivery's rows."""

    table: pd.DataFrame
    fresh: list[ReadableRow]  # rows to be merged
    known: list[ReadableRow]  # rows that the client has
    duplicates: int
    aside: dict[int, list[str]]  # reasons of bad rows, by line
    reasons: list[str]  # the same, counted

    @property
    def counts(self) -> dict[str, Any]:
        rows, fresh, aside = len(self.table), len(self.fresh), len(self.aside)
        return {"rows": rows, "accepted": fresh, "duplicates": self.duplicates, "quarantined": aside}

    def write_quarantine(self, folder: Path) -> None:
        """Keep the bad rows with their reasons in the delivery's folder; no file where there are none."""
        if self.aside:
            write_whole(folder / QUARANTINE, quarantine_text(self.table, self.aside))
        else:
            (folder / QUARANTINE).unlink(missing_ok=True)


@dataclass
class RowChecks:
    """Checks deliveries of one inbox; what no client may have is read once for all of them."""

    inbox: Path
    settings: Validation

    @cached_property
    def shared(self) -> dict[DataSet, pd.DataFrame]:
        """The public prompts and the evaluation sets."""
        return shared_tables(self.settings)

    def check(self, client: str, folder: Path) -> CheckedRows:
        """Rows of ``folder`` that are bad, known or new; what clashes with the client's rows is the delivery's fault."""
        data = DataSet(f"inbox.{client}", "inbox", folder / ROWS, folder)
        table = inspect_set(data, self.settings)
        known, delivered = self._rows_of(client), readable_rows(table)
        twins = _twins(known, delivered)
        rest = _with_clashes(table[~table["line"].isin(list(twins))].reset_index(drop=True), known, delivered)
        aside: dict[int, list[str]] = {}
        reasons: list[str] = []
        if len(rest):
            verdict = check_delivery(replace(data, root=self.inbox / client), rest, self.shared, self.settings)
            aside = verdict.reasons
            reasons = [
                f"{_number(len(fault.lines))}: expected that {fault.claim}, got {fault.got[0]}" for fault in verdict.faults
            ]
        aside |= {line: aside[first] for line, first in twins.items() if first in aside}  # no better than its twin
        if duplicates := sum(line not in aside for line in twins):
            reasons.append(f"{_number(duplicates)} known already")
        fresh = [row for row in delivered if row.line not in aside and row.line not in twins]
        return CheckedRows(table, fresh, known, duplicates, aside, reasons)

    def _rows_of(self, client: str) -> list[ReadableRow]:
        file, folder = paths.client_preferences(client), paths.client_folder(client)
        if not file.exists() or not file.read_bytes().strip():
            return []
        return readable_rows(inspect_set(DataSet(f"clients.{client}", "clients", file, folder), self.settings))


def readable_rows(table: pd.DataFrame) -> list[ReadableRow]:
    """Rows of a raw file whose text and picture can be read."""
    found = []
    for line, text, picture in zip(table["line"], table["text"], table["image_hash"], strict=True):
        try:
            row = Preference.model_validate_json(text)
        except ValidationError:
            continue
        if isinstance(picture, str):
            content = (picture, row.prompt.strip(), row.chosen.strip(), row.rejected.strip())
            found.append(ReadableRow(int(line), row, content))
    return found


def as_line(row: Preference) -> str:
    """The row as a line of its client's file."""
    return json.dumps(row.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n"


def _twins(known: Sequence[ReadableRow], delivered: Sequence[ReadableRow]) -> dict[int, int]:
    """Lines whose content is known, each with the delivered line that had it before; 0 where the client has it."""
    seen, twins = {row.content: 0 for row in known}, {}
    for row in delivered:
        if (first := seen.setdefault(row.content, row.line)) != row.line:
            twins[row.line] = first
    return twins


def _with_clashes(table: pd.DataFrame, known: Sequence[ReadableRow], delivered: Sequence[ReadableRow]) -> pd.DataFrame:
    """The table with what clashes with a client's rows: the opposite preference, and an id of something else."""
    ids, by_content = {row.row.id: row.line for row in known}, {row.content: row.line for row in known}
    contents = {row.line: row.content for row in delivered}
    taken, against = [], []
    for line, name, inside in zip(table["line"], table["id"], table["contradicted_by"], strict=True):
        picture, prompt, chosen, rejected = contents.get(int(line), ("", "", "", ""))
        opposite = by_content.get((picture, prompt, rejected, chosen))
        against.append(f"line {opposite} of the client's rows" if opposite else inside)
        taken.append(f"line {ids[name]} of the client's rows" if name in ids else None)
    return table.assign(contradicted_by=pd.Series(against, dtype=object), id_taken=pd.Series(taken, dtype=object))


def _number(rows: int) -> str:
    return f"{rows} row{'' if rows == 1 else 's'}"
