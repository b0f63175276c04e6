"""Every entry point reads its command line before it does anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import COMMANDS
from tasks.project.dvc import StageFailed

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    f"{folder}.{file.stem}"
    for folder in ("flows", "benchmarks")
    for file in (ROOT / folder).glob("*.py")
    if "__main__" in file.read_text() and file.stem != "cli"
)
LINES = [f"python -m {module}" for module in MODULES] + [f"mor {name}" for name in COMMANDS]
PASSES_ON = "mor run"  # its unknown words are for `dvc repro`
HEAVY = ("torch", "transformers", "prefect", "mlflow", "dvc", "great_expectations")
ASK_ALL = """
import contextlib, io, json, runpy, subprocess, sys, time

class Started(BaseException):
    pass

def refuse(*words, **options):
    raise Started("it started a process")

subprocess.Popen.__init__ = refuse
asked = {}
for line in json.loads(sys.argv[1]):
    words = json.loads(sys.argv[2])
    own = [*line.replace("mor ", "python -m flows.cli ").split()[2:], *words]
    module, sys.argv, said, code = own[0], own, io.StringIO(), None
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code = repr(error)
    heavy = sorted(set(json.loads(HEAVY)) & set(sys.modules))
    asked[line] = {"code": code, "said": said.getvalue(), "heavy": heavy, "seconds": time.monotonic() - began}
    sys.argv = [line, json.dumps([]), json.dumps(words)]
print(json.dumps(asked))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's folder that holds its settings alone."""
    empty = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "params.yaml", empty)
    return empty


def ask(folder: Path, *words: str) -> dict[str, dict[str, object]]:
    """Every command's exit code, output, heavy imports and seconds, when ``words`` follow it."""
    code = f"HEAVY = {json.dumps(json.dumps(HEAVY))}\n{ASK_ALL}"
    lines = [line for line in LINES if words == ("--help",) or line != PASSES_ON]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MOR_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines), json.dumps(words)],
        cwd=folder, env=environment | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    answers: dict[str, dict[str, object]] = json.loads(done.stdout)
    assert list(answers) == lines
    return answers


def test_help_is_shown_everywhere_at_once_and_nothing_is_started(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for line, answer in ask(folder, "--help").items():
        assert answer["code"] == 0, (line, answer)
        assert f"Usage: {line} " in str(answer["said"]), line
        assert answer["heavy"] == [], f"{line} imports {answer['heavy']} to show its help"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("words", [("--nonsense",), ("a", "b", "too many")])
def test_what_an_entry_point_does_not_know_is_refused_before_anything_starts(folder: Path, words: tuple[str, ...]) -> None:
    before = sorted(folder.rglob("*"))
    for line, answer in ask(folder, *words).items():
        assert answer["code"] == 2, (line, answer)
        assert f"Usage: {line} " in str(answer["said"]), line
        assert answer["heavy"] == [], (line, answer["heavy"])
    assert sorted(folder.rglob("*")) == before


def run(folder: Path, line: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a command line says and ends with: ``python -m ...`` or ``mor ...``."""
    command = [sys.executable, *line.replace("mor ", "python -m flows.cli ").split()[1:], *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | variables
    return subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=120)


def test_mor_alone_lists_every_command_in_a_line_and_loads_none(folder: Path) -> None:
    listing = "import sys, atexit; atexit.register(lambda: print('loaded', *sys.modules)); from flows.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", listing],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        check=True,
        capture_output=True,
        text=True,
    )
    for name, entry in COMMANDS.items():
        assert re.search(rf"^│ {name} +{re.escape(entry.summary)} +│$", done.stdout, re.MULTILINE), name
    after = done.stdout.rpartition("loaded ")[2].split()
    loaded = [name for name in after if name.partition(".")[0] in ("flows", "tasks", "mor", "pydantic", *HEAVY)]
    assert loaded == ["flows", "flows.cli"]


def test_a_misspelt_command_is_told_which_there_are(folder: Path) -> None:
    done = run(folder, "mor nighty")
    assert done.returncode == 2
    assert "No such command 'nighty'. Did you mean 'nightly'" in done.stderr


def test_outside_a_project_mor_says_so(tmp_path: Path) -> None:
    done = run(tmp_path, "mor diff")
    assert (done.returncode, done.stderr) == (1, "params.yaml: no such file; run from the project's folder\n")


def test_a_shell_is_offered_commands_and_their_options(folder: Path) -> None:
    def offered(words: str) -> list[str]:
        asks = {"_MOR_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return run(folder, "mor ", **asks).stdout.split()

    assert offered("mor ni") == ["nightly", "night", "nights-demo"]
    assert offered("mor benchmark --se") == ["--seeds", "--settings", "--search"]


def test_a_stage_without_its_client_shows_its_usage_instead_of_a_traceback(folder: Path) -> None:
    done = run(folder, "python -m flows.reward")
    assert done.returncode == 2
    assert "Usage: python -m flows.reward" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("line", ["python -m flows.reward nobody", "mor serve nobody --certificate c --key k"])
def test_a_client_that_is_not_there_is_answered_with_those_that_are(folder: Path, line: str) -> None:
    done = run(folder, line)
    assert done.returncode == 1
    assert done.stderr == "'nobody' is no client of params.yaml, which has documents, medical, scenes\n"


@pytest.mark.parametrize("night", ["-x", "../x", "a b", "", "x" * 65, "a..b", "a.lock", "a.", "-night", "a\n", "a'b"])
def test_a_night_is_not_given_a_name_that_git_or_a_path_would_misread(night: str) -> None:
    from flows.nightly import checked
    from mor.errors import UserError

    with pytest.raises(UserError, match="can't name a night"):
        checked(night)


def test_ordinary_names_of_nights_are_taken() -> None:
    from flows.nightly import checked

    for night in ("2026-01-02", "2026-01-02.2", "x", "A_b-c.d", "x" * 64, None):
        assert checked(night) == night


def test_a_wrong_name_ends_the_command_before_the_night_begins(folder: Path) -> None:
    done = run(folder, "mor night", "../x")
    assert done.returncode == 2
    assert "can't name a night" in done.stderr
    assert not (folder / ".nights").exists()


def test_a_name_that_prefect_hands_over_is_checked_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import nightly
    from mor.errors import UserError

    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="can't name a night"):
        nightly.nightly("--output=x")
    assert not (folder / ".nights").exists()


def test_an_option_of_the_benchmark_takes_several_values() -> None:
    from flows.benchmark import spread

    assert spread(["--seeds", "0", "1", "2", "--quick"]) == ["--seeds", "0", "--seeds", "1", "--seeds", "2", "--quick"]
    assert spread(["--settings", "hostile", "inflated", "--methods", "mor"]) == [
        "--settings", "hostile", "--settings", "inflated", "--methods", "mor",
    ]  # fmt: skip
    assert spread(["--jobs", "1", "--seeds", "-1", "3"]) == ["--jobs", "1", "--seeds", "-1", "--seeds", "3"]
    assert spread(["--seeds", "--quick", "stray"]) == ["--seeds", "--quick", "stray"]  # Typer's to refuse


def test_the_benchmark_names_the_methods_that_it_knows(folder: Path) -> None:
    done = run(folder, "mor benchmark", "--seeds", "0", "1", "--methods", "mor", "mro")
    assert done.returncode == 2
    assert "'mro' is no method; expected base, mor" in done.stderr


def test_words_for_dvc_reach_it_as_they_are(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from flows import cli
    from flows import run as command

    got: list[list[str]] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(command, "pipeline", lambda words: got.append(list(words)))
    monkeypatch.setattr(sys, "argv", ["mor", "run", "--force", "-s", "validate", "--set-param", "seed=1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert got == [["--force", "-s", "validate", "--set-param", "seed=1"]]


@pytest.mark.parametrize(("ends", "code"), [(None, 0), (StageFailed(255), 255), (KeyboardInterrupt(), 130)])
def test_the_zoo_is_thawed_for_its_training_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: BaseException | None, code: int
) -> None:
    from flows import cli
    from tasks.project import dvc, processes

    def reproduce(words: list[str]) -> None:
        asked.append((words, "frozen: false" in (tmp_path / "dvc.yaml").read_text()))
        if ends:
            raise ends

    asked: list[tuple[list[str], bool]] = []
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dvc, "reproduce", reproduce)
    monkeypatch.setattr(processes, "heed_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["mor", "zoo"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert asked == [(["zoo"], True)]
    assert (tmp_path / "dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
