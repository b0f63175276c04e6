"""The fedvqa stage with other house styles than the shipped ones."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from mor.config import FedVqa
from mor.data.schema import Question, read_rows
from mor.errors import ConfigError
from mor.fedvqa.write import image_digests, write_client
from tasks.project import paths
from tasks.stages import fedvqa as stage

Write = Callable[[dict[str, str]], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a small benchmark with the given house styles in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "stage_run", lambda *_: nullcontext(MagicMock()))

    def write_with(styles: dict[str, str]) -> None:
        small = {"pairs": 12, "held_out_pairs": 2, "public": 6, "questions": 4, "error_rate": 0.05}
        stage.write_fedvqa(0, FedVqa.model_validate(small | {"styles": styles}))

    return write_with


def test_clients_of_one_house_style_like_the_same_answers(write: Write) -> None:
    write(dict.fromkeys(["documents", "medical", "scenes"], "field"))
    for suite in ("documents", "medical", "scenes", "held_out"):
        questions = read_rows(paths.eval_suite(suite), Question)
        assert all(question.answer.startswith("answer: ") and not question.preferred for question in questions)
    card = paths.DATA_CARD.read_text()
    assert "Clients\nof one house style rank answers alike:\n\n| client |" in card
    assert "conflict, so" not in card
    assert "| scenes | field | `answer: 4` |" in card
    assert paths.CONTACT_SHEET.exists()


def test_the_shipped_house_styles_conflict_on_the_card_and_share_the_held_out_suite(write: Write) -> None:
    write({"documents": "terse", "medical": "field", "scenes": "sentence"})
    held_out = read_rows(paths.eval_suite("held_out"), Question)
    assert all(question.preferred == [f"The answer is {question.answer}."] for question in held_out)
    assert "(4). House styles\nconflict, so no answer pleases two clients:\n\n| client |" in paths.DATA_CARD.read_text()


def test_without_a_domain_that_it_mixes_there_is_no_held_out_suite(write: Write) -> None:
    write({"medical": "field"})
    assert paths.eval_suite("medical").exists()
    assert not paths.eval_suite("held_out").exists()


@pytest.mark.parametrize("name", ["held_out", "medcal"])
def test_a_house_style_of_no_domain_is_named(write: Write, name: str) -> None:
    with pytest.raises(ConfigError, match=f"params.yaml: fedvqa.styles: got {name}; expected .*documents, medical, scenes$"):
        write({"documents": "terse", name: "terse"})


def test_an_image_that_is_taken_is_drawn_again(tmp_path: Path) -> None:
    def images(folder: str, taken: set[str]) -> set[str]:
        (tmp_path / folder / "images").mkdir(parents=True)
        same = np.random.default_rng(7)
        write_client(
            tmp_path / folder, "scenes", house="terse", pairs=20, error_rate=0.0, answers=[], taken=taken, rng=same
        )  # fmt: skip
        return image_digests(tmp_path / folder)

    first = images("first", set())
    assert images("again", set()) == first
    second = images("other", first)
    assert len(second) == 20
    assert not first & second
