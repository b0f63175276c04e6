"""The pipeline's files against its code: stale results are worse than none, so a stage must know all that it uses."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mor.config import Params, load_params
from tasks.project import paths

ROOT = Path(__file__).parents[1]
PACKAGES = ("flows", "benchmarks", "tasks", "mor")
# They start, record and check, and can't change a result; the head of dvc.yaml says so too.
EXEMPT = {
    *(f"tasks/project/{name}.py" for name in ("paths", "decorators", "command_line")),
    *(f"tasks/tracking/{name}.py" for name in ("runs", "open_run")),
    "mor/__init__.py",
    "mor/config.py",
}
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_file(name: str) -> Path | None:
    """The file of one of our modules, given its dotted name; None for other packages' and for names inside a module."""
    base = ROOT.joinpath(*name.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.exists()), None)


@cache
def imports(file: Path) -> frozenset[Path]:
    """Files of ours that ``file`` imports, anywhere in it; the packages on the way to a module count as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports of our modules absolutely"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    dotted = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    found = {module_file(name) for name in dotted if name.split(".")[0] in PACKAGES}
    return frozenset(found - {None})  # type: ignore[arg-type]


def used_code(module: str) -> set[str]:
    """Every file of ours that ``python -m <module>`` loads and that can change what it makes."""
    start = module_file(module)
    assert start, f"{module}: dvc.yaml runs it, but it is not there"
    waiting, seen = [start], {start}
    while waiting:
        file = waiting.pop()
        if str(file.relative_to(ROOT)) not in EXEMPT:
            new = imports(file) - seen
            seen |= new
            waiting += new
    return {str(file.relative_to(ROOT)) for file in seen if not is_empty(file)} - EXEMPT


def is_empty(file: Path) -> bool:
    """Whether a package's ``__init__.py`` holds nothing but its description."""
    return file.name == "__init__.py" and all(isinstance(node, ast.Expr) for node in ast.parse(file.read_text()).body)


def listed_code(stage: dict[str, Any]) -> set[str]:
    """The Python files among a stage's ``deps``, folders taken apart."""
    code = [ROOT / path for path in stage["deps"] if path.split("/")[0] in PACKAGES]
    files = [file for path in code for file in (path.rglob("*.py") if path.is_dir() else [path]) if file.suffix == ".py"]
    return {str(file.relative_to(ROOT)) for file in files if not (file.exists() and is_empty(file))}


@pytest.mark.parametrize("name", STAGES)
def test_stage_depends_on_exactly_the_code_that_it_imports(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    module = stage["cmd"].split()[2]
    listed, used = listed_code(stage), used_code(module)
    assert sorted(used - listed) == [], f"add to the deps of {name}: a change there would leave its results stale"
    assert sorted(listed - used) == [], f"remove from the deps of {name}: a change there would run it again for nothing"


def test_dvc_reads_the_stages_and_gives_every_client_its_reward_stage() -> None:
    command = [sys.executable, "-m", "dvc", "stage", "list", "--name-only"]
    names = subprocess.check_output(command, cwd=ROOT, text=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"}).split()
    rewards = [f"reward@{client}" for client in load_params(ROOT / "params.yaml").clients]
    assert names == ["zoo", "fedvqa", "validate", *rewards, "router", "align", "evaluate", "report"]


def test_every_listed_setting_exists() -> None:
    settings = load_params(ROOT / "params.yaml").model_dump()
    for name, stage in STAGES.items():
        for key in stage.get("do", stage).get("params", []):
            value: Any = settings
            for part in key.replace(".${key}", "").split("."):
                assert part in value, f"{name}: {key} is not a setting"
                value = value[part]


@pytest.mark.parametrize("name", STAGES)
def test_stage_lists_every_setting_that_its_task_reads(name: str) -> None:
    stage = STAGES[name].get("do", STAGES[name])
    listed = [key.replace(".${key}", "") for key in stage["params"]]
    start = module_file(stage["cmd"].split()[2])
    assert start
    own = [file for file in (start, *imports(start)) if str(file.relative_to(ROOT)) not in EXEMPT]
    read = {found for file in own for found in re.findall(r"\bparams\.([a-z_]+(?:\.[a-z_]+)?)", file.read_text())}
    for key in sorted(key for key in read if key.split(".")[0] in Params.model_fields):
        assert any(f"{key}.".startswith(f"{section}.") for section in listed), f"{name} reads {key}; list it under params"


def test_folders_that_users_replace_outlive_a_run() -> None:
    for out in STAGES["fedvqa"]["outs"]:
        if isinstance(out, str):
            assert out.startswith("reports/"), f"{out}: a user's folder there would be deleted before the stage runs"
        else:
            assert all(options["persist"] for options in out.values())


def test_checkpoints_lie_outside_everything_that_dvc_deletes() -> None:
    for name, stage in STAGES.items():
        for out in [*stage.get("do", stage)["outs"], *stage.get("do", stage).get("metrics", [])]:
            path = Path(out if isinstance(out, str) else next(iter(out)))
            assert paths.CHECKPOINTS not in (path, *path.parents), f"{name} would lose its checkpoint"
            assert path not in paths.CHECKPOINTS.parents


def test_every_stage_writes_its_metrics_where_tracking_puts_them() -> None:
    for name, stage in STAGES.items():
        if name != "zoo":  # its metrics would be an out of a frozen stage that no fresh clone has
            written = str(paths.stage_metrics(f"{name}@${{key}}" if "do" in stage else name))
            assert written in stage.get("do", stage)["metrics"]


def test_locked_packages_hold_all_that_the_project_asks_for() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    locked = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for wanted in map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["dev"]]):
        pin = next(iter(locked[canonicalize_name(wanted.name)].specifier))
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), f"{wanted}: the lock has {pin.version}"
