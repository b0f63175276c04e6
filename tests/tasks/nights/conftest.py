"""The project that deliveries come to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mor.config import Params, load_params
from mor.data.schema import Preference, write_rows
from mor.fedvqa.write import MARKER
from tasks.project import paths
from tests.tasks.nights.delivering import HAD, PREFERENCES, SHIPPED, pair, picture


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A project with a generated client, two public prompts and an evaluation set, in the current folder."""
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(SHIPPED.read_text())
    settings["drift"] |= {"least_rows": 4, "shape_stop": 0.9}
    settings["rewards"] |= {"validation_share": 0.5}
    settings["validation"]["image_formats"] = ["PNG", "JPEG", "BMP"]
    settings["clients"]["radiology"] = {"backbone": "models/zoo/llava"}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    for number in range(HAD):
        picture(paths.client_folder("documents") / f"images/{number}.png", number)
    rows = [Preference.model_validate(pair(number, id=f"a{number}")) for number in range(HAD)]
    write_rows(PREFERENCES, rows)
    write_rows(paths.validated_client("documents"), rows)
    (paths.client_folder("documents") / MARKER).touch()
    picture(paths.PUBLIC / "images/p.png", 250)
    picture(paths.EVAL / "images/e.png", 251)
    paths.PUBLIC_PROMPTS.write_text(json.dumps({"id": "p", "image": "images/p.png", "prompt": "What is it?"}))
    question = {"id": "e", "image": "images/e.png", "prompt": "What is it?", "answer": "2", "category": "c"}
    paths.eval_suite("documents").write_text(json.dumps(question))
    return load_params(Path("params.yaml"))
