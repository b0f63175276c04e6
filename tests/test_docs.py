"""What the documents name is there: links, modules, commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
CODE = re.compile(r"\b(?:mor|tasks|flows|benchmarks|tests)/[\w/]+\.(?:py|j2|csv)\b")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_nothing_that_is_not_there(page: Path) -> None:
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    missing += [path for path in CODE.findall(text) if not (ROOT / path).exists()]
    missing += [name for name in re.findall(r"(?:`|^ *)mor ([a-z][a-z-]+)", text, re.MULTILINE) if name not in COMMANDS]
    missing += [name for name in re.findall(r"python -m ((?:flows|benchmarks)\.\w+)", text) if not _module(name).exists()]
    assert missing == []


def _module(name: str) -> Path:
    return ROOT / f"{name.replace('.', '/')}.py"
