"""Write the embedded data in the bring-your-own folder format (see ``mor.data.schema``).

A generated folder carries a marker file. A folder without one is somebody's own data and is left alone, so a user
replaces any part of it by putting a folder in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image

from mor.config import HELD_OUT
from mor.data import schema
from mor.data.pictures import png_bytes
from mor.fedvqa.annotator import KIND_SHARES, KINDS, STYLES, err, in_style, make_pair
from mor.fedvqa.render import DrawnQuestion, draw_question
from mor.files import fresh_folder

MARKER = ".generated"


def is_own_data(folder: Path) -> bool:
    """Whether ``folder`` holds data that this did not write and must not touch."""
    return folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists()


@contextmanager
def generated_folder(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill with rows and ``images/``, which takes the place of ``folder`` with the marker in it."""
    with fresh_folder(folder) as fresh:
        (fresh / "images").mkdir()
        yield fresh
        (fresh / MARKER).write_text("Written by the fedvqa stage. Remove this file to keep your own changes.\n")


def image_digests(*folders: Path) -> set[str]:
    """Digests of the PNG files below ``folders``."""
    return {image_digest(path.read_bytes()) for folder in folders for path in folder.rglob("*.png")}


def image_digest(png: bytes) -> str:
    """By which two images are the same."""
    return hashlib.sha256(png).hexdigest()


def _ask(
    folder: Path, name: str, domain: str, rng: np.random.Generator, pool: str, taken: AbstractSet[str] = frozenset()
) -> tuple[DrawnQuestion, dict[str, str]]:
    """A question and what every row says of it. Its image is saved, and is not ``taken``: some scenes are drawn twice."""
    while True:
        question = draw_question(domain, rng, pool)
        png = png_bytes(Image.fromarray(question.image))
        if image_digest(png) not in taken:
            break
    image = f"images/{name}.png"
    (folder / image).write_bytes(png)
    return question, {"id": name, "image": image, "prompt": question.prompt, "category": question.category}


def _in_all_styles(value: str) -> list[str]:
    return [in_style(value, style) for style in STYLES]


def write_client(
    folder: Path, domain: str, *, house: str, pairs: int, error_rate: float,
    answers: list[schema.Answer], taken: AbstractSet[str], rng: np.random.Generator,
) -> int:  # fmt: skip
    """One client's private pairs, one image each, none of them ``taken``, and its key to the public prompts of its domain."""
    rows = []
    for i in range(pairs):
        question, row = _ask(folder, f"{domain}-{i:05d}", domain, rng, "clients", taken)
        kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
        rows.append(schema.Preference(**row, **vars(err(make_pair(question, house, kind, rng), error_rate, rng))))
    schema.write_rows(folder / "preferences.jsonl", rows)
    schema.write_rows(folder / "answers.jsonl", answers)
    return len(rows)


def write_public(folder: Path, styles: Mapping[str, str], n: int, rng: np.random.Generator) -> dict[str, list[schema.Answer]]:
    """``n`` public prompts over the clients' domains in turn, unless somebody's own data is there.

    Returns each client's private key to its own. ``styles`` maps the domains to their clients' house styles.
    """
    answers: dict[str, list[schema.Answer]] = {domain: [] for domain in styles}
    if is_own_data(folder):
        return answers
    with generated_folder(folder) as fresh:
        prompts = []
        for i, domain in zip(range(n), cycle(styles)):
            question, row = _ask(fresh, f"public-{i:05d}", domain, rng, "public")
            prompts.append(schema.Prompt(**row))
            said, right = in_style(question.value, styles[domain]), _in_all_styles(question.value)
            answers[domain].append(schema.Answer(id=row["id"], answer=said, accepted=right))
        schema.write_rows(fresh / "prompts.jsonl", prompts)
    return answers


def write_evaluation(
    folder: Path, styles: Mapping[str, str], *, questions: int, pairs: int, taken: AbstractSet[str], rng: np.random.Generator
) -> int:
    """One suite a client and the held-out one, and ``pairs`` error-free pairs of each kind a client; no image is ``taken``.

    ``styles`` maps the domains to their clients' house styles. The held-out suite is left out where no client holds a
    domain that it mixes.
    """
    suites = {domain: [house] for domain, house in styles.items()}
    if mixed := [styles[domain] for domain in ("documents", "scenes") if domain in styles]:
        suites[HELD_OUT] = list(dict.fromkeys(mixed))
    for suite, houses in suites.items():
        rows = []
        for i in range(questions):
            question, row = _ask(folder, f"{suite}-{i:05d}", suite, rng, "test", taken)
            answer, *preferred = (in_style(question.value, house) for house in houses)
            right = _in_all_styles(question.value)
            rows.append(schema.Question(**row, answer=answer, accepted=right, preferred=preferred))
        schema.write_rows(folder / f"{suite}.jsonl", rows)
    for domain, house in styles.items():
        judged = []
        for i in range(pairs * len(KINDS)):
            question, row = _ask(folder, f"{domain}-pair-{i:05d}", domain, rng, "test", taken)
            judged.append(schema.Preference(**row, **vars(make_pair(question, house, KINDS[i % len(KINDS)], rng))))
        schema.write_rows(folder / "pairs" / f"{domain}.jsonl", judged)
    return questions * len(suites)
