"""Every entry point reads its command line before it does anything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    f"{folder}.{file.stem}"
    for folder in ("flows", "benchmarks")
    for file in (ROOT / folder).glob("*.py")
    if "__main__" in file.read_text()
)
PASSES_ON = "flows.pipeline"  # its unknown words are for `dvc repro`
HEAVY = ("torch", "transformers", "prefect", "mlflow", "dvc", "great_expectations")
ASK_ALL = """
import contextlib, io, json, runpy, subprocess, sys, time

class Started(BaseException):
    pass

def refuse(*words, **options):
    raise Started("it started a process")

subprocess.Popen.__init__ = refuse
asked = {}
for module in json.loads(sys.argv[1]):
    sys.argv, said, code = [module, *json.loads(sys.argv[2])], io.StringIO(), None
    words = sys.argv[1:]
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code = repr(error)
    heavy = sorted(set(json.loads(HEAVY)) & set(sys.modules))
    asked[module] = {"code": code, "said": said.getvalue(), "heavy": heavy, "seconds": time.monotonic() - began}
    sys.argv = [module, json.dumps([]), json.dumps(words)]
print(json.dumps(asked))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder that holds its settings alone."""
    empty = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", empty)
    return empty


def ask(folder: Path, *words: str) -> dict[str, dict[str, object]]:
    """Every module's exit code, output, heavy imports and seconds, for a command line of ``words``."""
    code = f"HEAVY = {json.dumps(json.dumps(HEAVY))}\n{ASK_ALL}"
    modules = [module for module in MODULES if words == ("--help",) or module != PASSES_ON]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MOR_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(modules), json.dumps(words)],
        cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    answers: dict[str, dict[str, object]] = json.loads(done.stdout)
    assert sorted(answers) == modules
    return answers


def test_help_is_shown_everywhere_at_once_and_nothing_is_started(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for module, answer in ask(folder, "--help").items():
        assert answer["code"] == 0, (module, answer)
        assert f"Usage: python -m {module}" in str(answer["said"]), module
        assert answer["heavy"] == [], f"{module} imports {answer['heavy']} to show its help"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("words", [("--nonsense",), ("a", "b", "too many")])
def test_what_an_entry_point_does_not_know_is_refused_before_anything_starts(folder: Path, words: tuple[str, ...]) -> None:
    before = sorted(folder.rglob("*"))
    for module, answer in ask(folder, *words).items():
        assert answer["code"] == 2, (module, answer)
        assert f"Usage: python -m {module}" in str(answer["said"]), module
        assert answer["heavy"] == [], (module, answer["heavy"])
    assert sorted(folder.rglob("*")) == before


def run(folder: Path, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=folder, env=variables, check=False, capture_output=True, text=True, timeout=120)


def test_a_stage_without_its_client_shows_its_usage_instead_of_a_traceback(folder: Path) -> None:
    done = run(folder, "flows.reward")
    assert done.returncode == 2
    assert "Usage: python -m flows.reward" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("flows.reward", "nobody"), ("flows.serve", "nobody", "--certificate", "c", "--key", "k")])
def test_a_client_that_is_not_there_is_answered_with_those_that_are(folder: Path, words: tuple[str, ...]) -> None:
    done = run(folder, *words)
    assert done.returncode == 1
    assert done.stderr == "'nobody' is no client of params.yaml, which has documents, medical, scenes\n"


@pytest.mark.parametrize("night", ["-x", "../x", "a b", "", "x" * 65, "a..b", "a.lock", "a.", "-night", "a\n", "a'b"])
def test_a_night_is_not_given_a_name_that_git_or_a_path_would_misread(night: str) -> None:
    from flows.nightly import checked
    from mor.config import UserError

    with pytest.raises(UserError, match="can't name a night"):
        checked(night)


def test_ordinary_names_of_nights_are_taken() -> None:
    from flows.nightly import checked

    for night in ("2026-01-02", "2026-01-02.2", "x", "A_b-c.d", "x" * 64, None):
        assert checked(night) == night


def test_a_wrong_name_ends_the_command_before_the_night_begins(folder: Path) -> None:
    done = run(folder, "flows.nightly", "../x")
    assert done.returncode == 2
    assert "can't name a night" in done.stderr
    assert not (folder / ".nights").exists()


def test_a_name_that_prefect_hands_over_is_checked_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import nightly
    from mor.config import UserError

    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="can't name a night"):
        nightly.nightly("--output=x")
    assert not (folder / ".nights").exists()


def test_an_option_of_the_comparison_takes_several_values() -> None:
    from flows.benchmark import spread

    assert spread(["--seeds", "0", "1", "2", "--quick"]) == ["--seeds", "0", "--seeds", "1", "--seeds", "2", "--quick"]
    assert spread(["--settings", "hostile", "inflated", "--methods", "mor"]) == [
        "--settings", "hostile", "--settings", "inflated", "--methods", "mor",
    ]  # fmt: skip
    assert spread(["--jobs", "1", "--seeds", "-1", "3"]) == ["--jobs", "1", "--seeds", "-1", "--seeds", "3"]
    assert spread(["--seeds", "--quick", "stray"]) == ["--seeds", "--quick", "stray"]  # Typer's to refuse


def test_the_comparison_names_the_methods_that_it_knows(folder: Path) -> None:
    done = run(folder, "flows.benchmark", "--seeds", "0", "1", "--methods", "mor", "mro")
    assert done.returncode == 2
    assert "'mro' is no method; expected base, mor" in done.stderr


def test_words_for_dvc_reach_it_as_they_are(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from flows import pipeline
    from tasks.project import command_line

    got: list[list[str]] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(pipeline, "pipeline", lambda words: got.append(list(words)))
    with pytest.raises(SystemExit) as ended:
        command_line.command(
            pipeline.run, ["--force", "-s", "validate", "--set-param", "seed=1"], context_settings=pipeline.FOR_DVC
        )
    assert ended.value.code == 0
    assert got == [["--force", "-s", "validate", "--set-param", "seed=1"]]
