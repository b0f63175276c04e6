"""Served models answer strangers: what they send is bounded, and what is wrong with it is said by row."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from mor import serving


def encoded(width: int = 32, height: int = 32) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Counting:
    """A reward model whose score is the number of characters."""

    def score(self, prompts: list[str], images: list[Image.Image], completions: list[str]) -> list[float | None]:
        return [float(len(prompt) + len(text)) for prompt, text in zip(prompts, completions, strict=True)]


@pytest.fixture
def model() -> Any:
    with warnings.catch_warnings(action="ignore"):  # MLflow's own, at its first import
        from tasks.tracking.serving.reward import ServedReward
    served = ServedReward()
    served.model = Counting()  # type: ignore[assignment]
    return served


def asked(model: Any, **columns: Any) -> list[float]:
    rows = {"image": [encoded()] * 3, "prompt": ["?"] * 3, "completion": ["no"] * 3} | columns
    scores: list[float] = model.predict(None, pd.DataFrame(rows))["score"].tolist()
    return scores


def test_ordinary_rows_are_answered(model: Any) -> None:
    assert asked(model) == [3.0] * 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ["?", "?" * 20_001, "?"]}, "row 1: prompt has 20001 characters, at most 20000"),
        ({"completion": ["no", "no", "x" * 20_001]}, "row 2: completion has 20001 characters"),
        ({"prompt": ["?", None, "?"]}, r"row 1: prompt is a \w+, expected a text"),
        ({"image": [encoded(), encoded(), "%%%"]}, "row 2: image is no base64"),
        ({"image": [encoded(), "", encoded()]}, "row 1: image cannot be read as a picture"),
        ({"image": [encoded(), base64.b64encode(b"hello").decode(), encoded()]}, "row 1: image cannot be read as a picture"),
        ({"image": [encoded(), encoded()[:60], encoded()]}, "row 1: image cannot be read as a picture"),
        ({"image": [encoded(), 7, encoded()]}, "row 1: image is a int, expected base64"),
    ],
)
def test_what_is_not_answered_is_named_by_its_row(model: Any, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        asked(model, **columns)
    assert "hello" not in str(caught.value)  # nothing that was sent is repeated


def test_a_call_has_so_many_rows_and_pixels_at_most(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    many = 1001
    with pytest.raises(ValueError, match="got 1001 rows, at most 1000 are answered in a call"):
        asked(model, image=[""] * many, prompt=["?"] * many, completion=["no"] * many)
    with pytest.raises(ValueError, match="got 1001 rows"):
        serving.pictures([""] * many)
    monkeypatch.setattr(serving, "PIXELS", 2 * 32 * 32)
    with pytest.raises(ValueError, match="row 2: the pictures up to here have 3072 pixels, at most 2048 a call"):
        asked(model)
    monkeypatch.setattr(serving, "ENCODED", 10)
    with pytest.raises(ValueError, match=r"row 0: image has \d+ characters of base64, at most 10"):
        asked(model)
