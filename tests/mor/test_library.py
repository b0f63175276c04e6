"""The library alone: what the README shows runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mor.fedvqa.render import draw_question

ROOT = Path(__file__).parents[2]


def test_the_readmes_example_aligns_a_model_without_any_of_the_pipeline(tmp_path: Path) -> None:
    shown = re.search(r"<!-- library example -->.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert shown
    code = shown[1].replace("steps=20", "steps=2, prompts=2, generations=2")  # the same in a few seconds
    assert code != shown[1]
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(draw_question("scenes", rng, "public").image).save(tmp_path / "pictures" / f"{i}.png")
    told = "\nimport sys\nassert not {'dvc', 'prefect', 'tasks', 'flows'} & sys.modules.keys()\n"
    start = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", start + code + told], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("round 1: {'reward': ")
    assert (tmp_path / "aligned/rounds/1/adapter/adapter_model.safetensors").exists()


def test_a_name_that_the_library_lacks_is_an_attribute_error() -> None:
    import mor

    assert {name for name in mor.__all__ if not callable(getattr(mor, name))} == set()
    assert not hasattr(mor, "train")
