from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mor.data.schema import Preference, Prompt, Question, load_images, read_rows, write_rows
from mor.fedvqa.annotator import STYLES, in_style
from mor.fedvqa.sheet import HEADING, MARGIN, SCALE, TILE, WIDTH, contact_sheet, data_card, style_of
from mor.fedvqa.write import MARKER

RED = (200, 10, 10)
HOUSE = {"documents": "terse"}


def own_data(root: Path) -> tuple[dict[str, Path], Path, Path]:
    """A user's client with two pairs on one image, a public prompt on a copy of it, and one evaluation question."""
    client, public, evaluation = root / "clinic", root / "public", root / "eval"
    for folder, colour in ((client, RED), (public, RED), (evaluation, (0, 0, 255))):
        folder.mkdir()
        Image.new("RGB", (300, 150), colour).save(folder / "scan.png")
    pair = Preference(id="1", image="scan.png", prompt="Where | what?", chosen="left", rejected="right")
    write_rows(client / "preferences.jsonl", [pair, pair.model_copy(update={"id": "2"})])
    write_rows(public / "prompts.jsonl", [Prompt(id="p", image="scan.png", prompt="Where?")])
    write_rows(
        evaluation / "clinic.jsonl", [Question(id="q", image="scan.png", prompt="Where?", answer="left", category="a|b")]
    )
    return {"clinic": client}, public, evaluation


def generated(*folders: Path) -> None:
    """Mark folders as the benchmark's own."""
    for folder in folders:
        (folder / MARKER).touch()


def test_the_card_counts_what_is_there_and_finds_images_in_two_sets(tmp_path: Path) -> None:
    card = data_card(*own_data(tmp_path), styles=HOUSE, error_rate=0.05)
    assert "| clinic | data of your own | 2 | 1 | none |" in card
    assert "The server holds 1 public prompts" in card
    assert "**clinic and public prompts share 1 images.**" in card  # the same file in two folders
    assert "a\\|b 1" in card  # a bar in a name breaks no table


def test_the_card_of_own_data_says_nothing_about_the_benchmarks_annotators_and_sources(tmp_path: Path) -> None:
    card = data_card(*own_data(tmp_path), styles=HOUSE, error_rate=0.05)
    assert "house style" not in card
    assert "Optical Recognition" not in card


def test_the_card_of_the_benchmark_counts_its_mistakes_kinds_and_disjoint_splits(project: Path) -> None:
    folder = project / "data" / "clients" / "documents"
    pairs = [
        # two style pairs: the first follows the terse house style, the second is a mistake
        Preference(id="1", image="images/documents-00000.png", prompt="?", chosen="4", rejected="answer: 4", kind="style"),
        Preference(id="2", image="images/documents-00001.png", prompt="?", chosen="answer: 4", rejected="4", kind="style"),
        Preference(id="3", image="images/documents-00002.png", prompt="?", chosen="4", rejected="5", kind="correctness"),
    ]
    write_rows(folder / "preferences.jsonl", pairs)
    generated(folder)
    card = data_card(
        {"documents": folder}, project / "data" / "public", project / "data" / "eval", styles=HOUSE, error_rate=0.05
    )
    assert "| documents | terse | `4` | 50.0 % of 2 |" in card
    assert "| documents | 1 | 2 | 0 | 0 |" in card  # correctness, style, malformed, tradeoff
    assert "errs in 5 % of the private pairs" in card
    assert "No image is in two of these sets" in card


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("value", ["42", "top left"])
def test_a_style_is_told_from_its_answer(style: str, value: str) -> None:
    assert style_of(in_style(value, style)) == style


def test_the_sheet_shows_each_image_fitted_into_its_tile(tmp_path: Path) -> None:
    clients, _, evaluation = own_data(tmp_path)
    generated(clients["clinic"])
    sheet = contact_sheet(clients, evaluation / "none.jsonl", samples=2)
    count = sum(n for n, colour in sheet.getcolors(maxcolors=1 << 20) or [] if colour == RED)
    assert count == 2 * (TILE * SCALE) * (TILE * SCALE // 2)  # two samples of 300 x 150: full width, half height
    assert sheet.getpixel((MARGIN * SCALE - 1, sheet.height // 2)) == (255, 255, 255)


def test_the_sheet_shows_no_folder_that_somebody_put_in_place(tmp_path: Path) -> None:
    clients, _, evaluation = own_data(tmp_path)
    held_out = (evaluation / "clinic.jsonl").rename(evaluation / "held_out.jsonl")
    assert contact_sheet(clients, held_out).getcolors() == [(WIDTH * SCALE * 2 * MARGIN * SCALE, (255, 255, 255))]  # margins


def test_the_card_counts_rows_of_a_clients_own_folder_and_looks_no_further(tmp_path: Path) -> None:
    clients, public, evaluation = own_data(tmp_path)
    pair = Preference(id="1", image="scan.png", prompt="?", chosen="4", rejected="answer: 4", kind="style")
    write_rows(clients["clinic"] / "preferences.jsonl", [pair])
    card = data_card(clients, public, evaluation, styles={"clinic": "terse"}, error_rate=0.05)
    assert "| clinic | data of your own | 1 | 1 | none |" in card
    assert "house style" not in card


def test_a_held_out_suite_adds_a_row(tmp_path: Path) -> None:
    clients, _, evaluation = own_data(tmp_path)
    generated(evaluation)
    held_out = (evaluation / "clinic.jsonl").rename(evaluation / "held_out.jsonl")
    assert contact_sheet(clients, held_out).height > contact_sheet(clients).height


def test_small_images_are_enlarged_with_square_pixels(project: Path) -> None:
    folder = project / "data" / "clients" / "scenes"
    pairs = read_rows(folder / "preferences.jsonl", Preference)[:1]
    generated(folder)
    write_rows(folder / "preferences.jsonl", pairs)
    sheet = np.asarray(contact_sheet({"scenes": folder}, samples=1))
    top, left, side = (MARGIN + HEADING) * SCALE, MARGIN * SCALE, TILE * SCALE
    image = np.asarray(load_images(folder, pairs)[0])  # (32, 32, 3): each pixel becomes 8 x 8, for 256 / 32 = 8
    assert np.array_equal(sheet[top : top + side, left : left + side], image.repeat(8, axis=0).repeat(8, axis=1))
