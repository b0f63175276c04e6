"""Great Expectations over every data set, before anything is trained on it.

``mor.data.checks`` turns a raw file into a table, one row a line; here are the expectations on its columns, the Data
Docs site, and what becomes of bad rows: they stop the pipeline, or are set aside with their reasons. Messages and pages hold
lines, counts and reasons; what a row holds stays in the client's own folders.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from rich.console import Console
from rich.markup import escape

from mor.config import Validation
from mor.data.checks import TEXTS, Problem, inspect, json_types, repeated_ids, shared_images
from mor.data.schema import DataError, Preference, Prompt, Question, Row, write_rows
from mor.text import printable
from tasks.project import paths
from tasks.project.decorators import task
from tasks.project.files import fresh_folder
from tasks.stages.data_docs import make_inert
from tasks.tracking.runs import stage_run

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult
    from great_expectations.expectations.expectation import ColumnMapExpectation

FEWEST_PAIRS = 10  # clean rows without which a client can train nothing
DROP = "or remove the line"
RESULTS = {"result_format": "COMPLETE", "unexpected_index_column_names": ["line"], "include_unexpected_rows": False}
Role = Literal["clients", "public", "eval", "pairs", "inbox"]
KINDS: dict[Role, type[Row]] = {
    "clients": Preference,
    "public": Prompt,
    "eval": Question,
    "pairs": Preference,
    "inbox": Preference,  # rows on their way to a client's; their table has a column more, see ``check_delivery``
}


@dataclass(frozen=True)
class DataSet:
    """One raw file; its images are relative to ``root``."""

    name: str  # clients.documents, public, eval.medical, pairs.scenes; also what its metrics start with
    role: Role
    file: Path
    root: Path

    @property
    def fewest(self) -> int:
        """Clean rows that must be left."""
        return FEWEST_PAIRS if self.role == "clients" else 1


@dataclass(frozen=True)
class DataReport:
    """What was found in one data set."""

    data: DataSet
    table: pd.DataFrame
    expectations: int
    faults: list[Problem]  # each of single rows, which can be set aside

    @property
    def reasons(self) -> dict[int, list[str]]:
        """Why lines are bad, by line number."""
        reasons = defaultdict(list)
        for fault in self.faults:
            for line, got in zip(fault.lines, fault.got, strict=True):
                reasons[line].append(f"expected that {fault.claim}, got {got}")
        return dict(sorted(reasons.items()))

    @property
    def too_small(self) -> str | None:
        """What to say if so few rows are clean that nothing can go on."""
        data, rows = self.data, len(self.table)
        clean = rows - len(self.reasons)
        need = f"{data.fewest} clean row{'s' if data.fewest > 1 else ''}"
        short = f"{data.name}: {data.file}: at least {need} needed, got {clean} of {rows}; correct the bad lines or add more"
        return short if clean < data.fewest else None


@task(name="validate data")
def validate_data(clients: Sequence[str], settings: Validation) -> None:
    """Check all data sets; leave clean rows in ``data/validated`` and Data Docs in ``reports/validation``.

    Raises ``DataError`` that lists every problem of every set if a row is bad (``on_bad_rows: fail``), or if a set is
    missing, empty or too small even without its bad rows.
    """
    with stage_run("validate", {"validation": settings}) as run:
        verdicts, missing = check(clients, settings)
        for verdict in verdicts:
            name, rows = verdict.data.name, len(verdict.table)
            counts = {"rows": rows, "bad_rows": len(verdict.reasons), "expectations": verdict.expectations}
            run.metrics({f"validation.{name}.{key}": value for key, value in counts.items()})
            run.dataset(name, verdict.data.file, rows, "validation")
        settle(verdicts, missing, settings)


def check(clients: Sequence[str], settings: Validation) -> tuple[list[DataReport], list[str]]:
    """Run every suite and build Data Docs; returns the verdicts, and the problems of sets that cannot be read at all."""
    sets, missing = find_sets(clients)
    tables: dict[DataSet, pd.DataFrame] = {}
    for data in sets:
        try:
            tables[data] = inspect_set(data, settings)
        except DataError as error:
            missing.append(f"{data.name}: {error}")
    _mark_shared(tables)
    verdicts = _run_suites(tables, settings)
    console = Console()
    for verdict in verdicts:
        _show(verdict, console)
    return verdicts, missing


def inspect_set(data: DataSet, settings: Validation) -> pd.DataFrame:
    """The table of ``mor.data.checks``; raises ``DataError`` where there is no file or no row."""
    return inspect(data.file, KINDS[data.role], data.root, settings.max_image_side, settings.image_formats)


def shared_tables(settings: Validation) -> dict[DataSet, pd.DataFrame]:
    """The public prompts and all evaluation files, whose pictures no client may have; raises ``DataError`` without them."""
    sets, missing = find_sets([])
    if missing:
        raise DataError("\n".join(missing))
    return {data: inspect_set(data, settings) for data in sets}


def check_delivery(
    data: DataSet, table: pd.DataFrame, shared: Mapping[DataSet, pd.DataFrame], settings: Validation
) -> DataReport:
    """Judge rows that are to be added to a client's; nothing is written.

    Beside the columns of ``mor.data.checks``, ``table`` has ``id_taken``: where the client has that id already, else null.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    _mark_shared({data: table, **shared})
    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),  # no Data Docs, so no folder for them either
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context: Any = gx.get_context(mode="ephemeral", project_config=config)
    return _run_suite(context, context.data_sources.add_pandas("data"), data, table, settings)


def find_sets(clients: Sequence[str]) -> tuple[list[DataSet], list[str]]:
    """Data sets of the named clients, the public prompts, and every evaluation file there is; and what is not there."""
    sets = [
        DataSet(f"clients.{name}", "clients", paths.client_preferences(name), paths.client_folder(name)) for name in clients
    ]
    sets.append(DataSet("public", "public", paths.PUBLIC_PROMPTS, paths.PUBLIC))
    suites = sorted(paths.eval_suite("*").parent.glob("*.jsonl"))
    sets += [DataSet(f"eval.{_plain(file)}", "eval", file, paths.EVAL) for file in suites]
    pairs = sorted(paths.eval_pairs("*").parent.glob("*.jsonl"))
    sets += [DataSet(f"pairs.{_plain(file)}", "pairs", file, paths.EVAL) for file in pairs]
    fix = "write one <suite>.jsonl for every client and one for held-out data, see mor/data/schema.py"
    return sets, [] if suites else [f"eval: {paths.EVAL}: no evaluation suite; {fix}"]


def settle(verdicts: Sequence[DataReport], missing: Sequence[str], settings: Validation) -> None:
    """Write clean and quarantined rows, or raise ``DataError`` with all problems. Results of earlier runs are removed."""
    quarantine = settings.on_bad_rows == "quarantine"
    shutil.rmtree(paths.VALIDATED, ignore_errors=True)
    shutil.rmtree(paths.QUARANTINE, ignore_errors=True)
    if quarantine:
        _write_quarantine(verdicts)
    faults = [fault for verdict in verdicts for fault in verdict.faults]
    blocked = [*missing, *(verdict.too_small for verdict in verdicts if verdict.too_small)]
    if blocked or (faults and not quarantine):
        raise DataError(_message([*blocked, *map(str, faults)], can_quarantine=not blocked))
    _write_clean(verdicts)


def _plain(file: Path) -> str:
    """A file's name as one part of a metric name."""
    return "".join(letter if letter.isalnum() else "_" for letter in file.stem)


def _mark_shared(tables: Mapping[DataSet, pd.DataFrame]) -> None:
    """Blame training rows, never test rows, for pictures that both have; clients' rows for those that are public."""
    tests = {data.file: table for data, table in tables.items() if data.role in ("eval", "pairs")}
    public = {data.file: table for data, table in tables.items() if data.role == "public"}
    for data, table in tables.items():
        if data.role in ("clients", "inbox", "public"):
            table["in_test"] = pd.Series(shared_images(table, tests), dtype=object)
        if data.role in ("clients", "inbox"):
            table["in_public"] = pd.Series(shared_images(table, public), dtype=object)


def _suite(data: DataSet, settings: Validation) -> list[ColumnMapExpectation]:
    """The expectations of a data set, on the columns of ``mor.data.checks``."""
    kind = KINDS[data.role]
    suite = [*_format_rules(kind), *_text_rules(kind, settings), *_picture_rules(data.root, settings)]
    if kind is Preference:
        suite += [
            _expect("Null", "equal_answers", "chosen and rejected differ", f"correct one {DROP}"),
            _expect("Null", "contradicted_by", "no other line prefers the opposite", "keep one of the two lines"),
        ]
    if data.role in ("clients", "inbox", "public"):
        suite.append(_expect("Null", "in_test", "the picture is in no evaluation set", "remove the line: tests stay unseen"))
    if data.role in ("clients", "inbox"):
        suite.append(_expect("Null", "in_public", "the picture is not in the public set", "remove the line here or there"))
    if data.role == "inbox":
        suite.append(_expect("Null", "id_taken", "the id is not that of another pair", f"give the line another id {DROP}"))
    return suite


def _expect(rule: str, column: str, claim: str, fix: str, **bounds: Any) -> ColumnMapExpectation:
    """``ExpectColumnValuesToBe<rule>``; nulls are skipped. Claim and fix are what a message says."""
    from great_expectations.expectations import core

    built: ColumnMapExpectation = getattr(core, f"ExpectColumnValuesToBe{rule}")(
        column=column, description=claim, meta={"fix": fix}, **bounds
    )
    return built


def _format_rules(kind: type[Row]) -> Iterator[ColumnMapExpectation]:
    yield _expect("Null", "parse_error", "the line is a JSON object in UTF-8", f"correct {DROP}")
    for key, types in json_types(kind).items():
        claim, verb = f'"{key}" has the type {" or ".join(types)}', "correct" if "missing" in types else "add or correct"
        yield _expect("InSet", f"{key}_type", claim, f"{verb} the key {DROP}", value_set=list(types))
    yield _expect("Null", "id_repeated", "id is unique", f"give each line an id of its own {DROP}")


def _text_rules(kind: type[Row], settings: Validation) -> Iterator[ColumnMapExpectation]:
    for key in (key for key in TEXTS if key in kind.model_fields):
        setting = f"max_{'prompt' if key == 'prompt' else 'answer'}_characters"
        limit = None if key == "id" else int(getattr(settings, setting))
        claim = f"{key} has 1 to {limit} characters" if limit else f"{key} has characters"
        fix = f"rewrite it, raise validation.{setting} {DROP}" if limit else f"write it {DROP}"
        yield _expect("Between", f"{key}_length", claim, fix, min_value=1, max_value=limit)


def _picture_rules(root: Path, settings: Validation) -> Iterator[ColumnMapExpectation]:
    yield _expect("Null", "image_outside", f"image is a path inside {root}", f"move the picture there {DROP}")
    yield _expect("Null", "image_missing", f"image is a file in {root}", f"add the picture, correct the path {DROP}")
    formats = " or ".join(settings.image_formats)
    yield _expect("Null", "image_unreadable", "image can be decoded", f"save it again as {formats} {DROP}")
    low, high = settings.min_image_side, settings.max_image_side
    fix = f"resize it, change validation.min_image_side or max_image_side {DROP}"
    for side in ("width", "height"):
        claim = f"image {side} is {low} to {high} pixels"
        yield _expect("Between", f"image_{side}", claim, fix, min_value=low, max_value=high)


def _run_suites(tables: Mapping[DataSet, pd.DataFrame], settings: Validation) -> list[DataReport]:
    """Let Great Expectations validate every table and build the Data Docs of this run alone."""
    import great_expectations as gx

    home = paths.checkpoint_folder("validate")  # the project folder of Great Expectations: scratch, made anew
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(paths.VALIDATION_SITE, ignore_errors=True)
    home.mkdir(parents=True)
    context: Any = gx.get_context(mode="file", project_root_dir=home)
    context.enable_analytics(False)
    context.variables.progress_bars = {"globally": False}
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(paths.VALIDATION_SITE.resolve())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    site = {"class_name": "SiteBuilder", "show_how_to_buttons": False, "store_backend": store, "site_index_builder": index}
    context.update_data_docs_site("local_site", site)
    source = context.data_sources.add_pandas("data")
    verdicts = [_run_suite(context, source, data, table, settings) for data, table in tables.items()]
    context.build_data_docs()
    pages = [(v.data.name, len(v.table), len(v.reasons), v.expectations, len(v.faults)) for v in verdicts]
    make_inert(paths.VALIDATION_SITE, pages)
    return verdicts


def _run_suite(context: Any, source: Any, data: DataSet, table: pd.DataFrame, settings: Validation) -> DataReport:
    """Let Great Expectations validate one table in ``context``."""
    import great_expectations as gx

    batch = source.add_dataframe_asset(data.name).add_batch_definition_whole_dataframe("all rows")
    suite: ExpectationSuite = context.suites.add(gx.ExpectationSuite(data.name, expectations=_suite(data, settings)))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=data.name, data=batch, suite=suite))
    # Data Docs show what is wrong, not what people wrote
    frame = table.drop(columns=["text", "id"]).assign(id_repeated=pd.Series(repeated_ids(table), table.index, dtype=object))
    result = definition.run(batch_parameters={"dataframe": frame}, result_format=RESULTS)
    return DataReport(data, table, len(suite.expectations), _faults(data, result))


def _faults(data: DataSet, result: ExpectationSuiteValidationResult) -> list[Problem]:
    """Unmet expectations with the lines that break them; raises ``RuntimeError`` if one could not be evaluated."""
    faults = []
    for outcome in result.results:
        if outcome.success:
            continue
        config: Any = outcome.expectation_config
        rows = outcome.result.get("unexpected_index_list")
        if rows is None:
            raise RuntimeError(f"{data.file}: {config.type} on {config.kwargs['column']} failed to run")
        rows = sorted(rows, key=lambda row: int(row["line"]))
        lines, got = tuple(int(row["line"]) for row in rows), tuple(str(row[config.kwargs["column"]]) for row in rows)
        faults.append(Problem(data.name, data.file, str(config.description), config.meta["fix"], lines, got))
    return faults


def _show(verdict: DataReport, console: Console) -> None:
    bad, passed = len(verdict.reasons), verdict.expectations - len(verdict.faults)
    mark = "[red]✗[/]" if verdict.faults or verdict.too_small else "[green]✓[/]"
    counts = f"{len(verdict.table):>6} rows  {passed:>2}/{verdict.expectations} expectations  {bad} bad"
    console.print(f"{mark} {escape(printable(verdict.data.name)):<24}{counts}", highlight=False, soft_wrap=True)


def _message(problems: Sequence[str], can_quarantine: bool) -> str:
    title = f"data validation: {len(problems)} problem{'s' if len(problems) > 1 else ''}, the pipeline stops here"
    hints = [f"Every line: {paths.VALIDATION_SITE / 'index.html'}"]
    if can_quarantine:
        hints.append("To set bad rows aside and go on: validation.on_bad_rows: quarantine in params.yaml")
    return "\n".join([title, *(f"  {problem}" for problem in problems), *hints])


def quarantine_text(table: pd.DataFrame, reasons: Mapping[int, list[str]]) -> str:
    """JSON Lines with one object a bad row: line number, reasons and the raw text."""
    texts = dict(zip(table["line"], table["text"], strict=True))
    rows = ({"line": line, "reasons": why, "text": texts[line]} for line, why in sorted(reasons.items()))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_quarantine(verdicts: Sequence[DataReport]) -> None:
    """Write the bad rows of every set with their reasons."""
    for verdict in verdicts:
        if reasons := verdict.reasons:
            file = paths.quarantined(verdict.data.file)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(quarantine_text(verdict.table, reasons), encoding="utf-8")
            said = f"  {printable(verdict.data.name)}: {len(reasons)} bad rows set aside in {printable(file)}"
            Console(soft_wrap=True).print(said, highlight=False, markup=False)


def _write_clean(verdicts: Sequence[DataReport]) -> None:
    """Write all clean rows beside ``data/validated`` and move them in at once."""
    with fresh_folder(paths.VALIDATED) as draft:
        for verdict in verdicts:
            clean = verdict.table.loc[~verdict.table["line"].isin(list(verdict.reasons)), "text"]
            rows = [KINDS[verdict.data.role].model_validate_json(text) for text in clean]
            write_rows(draft / paths.validated(verdict.data.file).relative_to(paths.VALIDATED), rows)
