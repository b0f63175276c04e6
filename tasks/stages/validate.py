"""Great Expectations over every data set, before anything is trained on it.

``mor.data.checks`` turns a raw file into a table, one row a line; here are the expectations on its columns, the Data
Docs site, and what becomes of bad rows: they stop the pipeline, or are set aside with their reasons. Messages and pages hold
lines, counts and reasons; what a row holds stays in the client's own folders.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from mor.config import Validation
from mor.data.checks import Problem, inspect, repeated_ids, shared_images
from mor.data.schema import DataError, write_rows
from mor.files import fresh_folder
from mor.text import printable
from tasks.project import paths
from tasks.project.decorators import task
from tasks.stages.data_docs import make_inert
from tasks.stages.expectations import KINDS, Role, expectations
from tasks.tracking.runs import stage_run

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuite, ExpectationSuiteValidationResult

FEWEST_PAIRS = 10  # clean rows without which a client can train nothing
RESULTS = {"result_format": "COMPLETE", "unexpected_index_column_names": ["line"], "include_unexpected_rows": False}


@dataclass(frozen=True)
class DataSet:
    """One raw file; its images are relative to ``root``."""

    name: str  # clients.documents, public, eval.medical, pairs.scenes; also what its metrics start with
    role: Role
    file: Path
    root: Path


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
        fewest, need = (FEWEST_PAIRS, f"{FEWEST_PAIRS} clean rows") if data.role == "clients" else (1, "1 clean row")
        short = f"{data.name}: {data.file}: at least {need} needed, got {clean} of {rows}; correct the bad lines or add more"
        return short if clean < fewest else None


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
    for verdict in verdicts:
        _show(verdict)
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
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults, ProgressBarsConfig

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
    own = [(name, paths.client_preferences(name), paths.client_folder(name)) for name in clients]
    sets = [DataSet(f"clients.{name}", "clients", file, folder) for name, file, folder in own]
    sets.append(DataSet("public", "public", paths.PUBLIC_PROMPTS, paths.PUBLIC))
    roles: dict[Role, Path] = {"eval": paths.eval_suite("*").parent, "pairs": paths.eval_pairs("*").parent}
    for role, folder in roles.items():
        for file in sorted(folder.glob("*.jsonl")):
            name = "".join(letter if letter.isalnum() else "_" for letter in file.stem)  # as one part of a metric's name
            sets.append(DataSet(f"{role}.{name}", role, file, paths.EVAL))
    fix = "write one <suite>.jsonl for every client and one for held-out data, see mor/data/schema.py"
    return sets, [] if any(data.role == "eval" for data in sets) else [f"eval: {paths.EVAL}: no evaluation suite; {fix}"]


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
    with fresh_folder(paths.VALIDATED) as draft:
        for verdict in verdicts:
            clean = verdict.table.loc[~verdict.table["line"].isin(list(verdict.reasons)), "text"]
            rows = [KINDS[verdict.data.role].model_validate_json(text) for text in clean]
            write_rows(draft / paths.validated(verdict.data.file).relative_to(paths.VALIDATED), rows)


def _mark_shared(tables: Mapping[DataSet, pd.DataFrame]) -> None:
    """Blame training rows, never test rows, for pictures that both have; clients' rows for those that are public."""
    tests = {data.file: table for data, table in tables.items() if data.role in ("eval", "pairs")}
    public = {data.file: table for data, table in tables.items() if data.role == "public"}
    for data, table in tables.items():
        if data.role in ("clients", "inbox", "public"):
            table["in_test"] = pd.Series(shared_images(table, tests), dtype=object)
        if data.role in ("clients", "inbox"):
            table["in_public"] = pd.Series(shared_images(table, public), dtype=object)


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
    import great_expectations as gx

    batch = source.add_dataframe_asset(data.name).add_batch_definition_whole_dataframe("all rows")
    rules = expectations(data.role, data.root, settings)
    suite: ExpectationSuite = context.suites.add(gx.ExpectationSuite(data.name, expectations=rules))
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


def _show(verdict: DataReport) -> None:
    bad, passed = len(verdict.reasons), verdict.expectations - len(verdict.faults)
    mark = "[red]✗[/]" if verdict.faults or verdict.too_small else "[green]✓[/]"
    counts = f"{len(verdict.table):>6} rows  {passed:>2}/{verdict.expectations} expectations  {bad} bad"
    Console().print(f"{mark} {escape(printable(verdict.data.name)):<24}{counts}", highlight=False, soft_wrap=True)


def _message(problems: Sequence[str], can_quarantine: bool) -> str:
    lines = [f"data validation: {len(problems)} problem{'s' if len(problems) > 1 else ''}, the pipeline stops here"]
    lines += [*(f"  {problem}" for problem in problems), f"Every line: {paths.VALIDATION_SITE / 'index.html'}"]
    if can_quarantine:
        lines.append("To set bad rows aside and go on: validation.on_bad_rows: quarantine in params.yaml")
    return "\n".join(lines)


def quarantine_text(table: pd.DataFrame, reasons: Mapping[int, list[str]]) -> str:
    """JSON Lines with one object a bad row: line number, reasons and the raw text."""
    texts = dict(zip(table["line"], table["text"], strict=True))
    rows = ({"line": line, "reasons": why, "text": texts[line]} for line, why in sorted(reasons.items()))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write_quarantine(verdicts: Sequence[DataReport]) -> None:
    for verdict in verdicts:
        if reasons := verdict.reasons:
            file = paths.quarantined(verdict.data.file)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(quarantine_text(verdict.table, reasons), encoding="utf-8")
            said = f"  {printable(verdict.data.name)}: {len(reasons)} bad rows set aside in {printable(file)}"
            Console(soft_wrap=True).print(said, highlight=False, markup=False)
