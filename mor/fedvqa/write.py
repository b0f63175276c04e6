"""Write the embedded data in the bring-your-own folder format (see ``mor.data.schema``).

A generated folder carries a marker file. A folder without one is somebody's own data and is left alone, so a user
replaces any part of it by putting a folder in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
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


def write_folder(folder: Path, fill: Callable[[Path], int]) -> int:
    """Fill a fresh folder and move it into place; returns the number of rows, 0 where somebody's own data stands."""
    if is_own_data(folder):
        return 0
    with fresh_folder(folder) as fresh:
        (fresh / "images").mkdir()
        rows = fill(fresh)
        (fresh / MARKER).write_text("Written by the fedvqa stage. Remove this file to keep your own changes.\n")
    return rows


def image_digests(*folders: Path) -> set[str]:
    """Digests of the PNG files below ``folders``."""
    return {image_digest(path.read_bytes()) for folder in folders for path in folder.rglob("*.png")}


def image_digest(png: bytes) -> str:
    """By which two images are the same."""
    return hashlib.sha256(png).hexdigest()


def _png(question: DrawnQuestion) -> bytes:
    return png_bytes(Image.fromarray(question.image))


def _ask_new(domain: str, rng: np.random.Generator, pool: str, taken: AbstractSet[str]) -> DrawnQuestion:
    """A question about an image that is not ``taken``: there are few scenes, and some are drawn twice."""
    while image_digest(_png(question := draw_question(domain, rng, pool))) in taken:
        pass
    return question


def _save(question: DrawnQuestion, folder: Path, name: str) -> str:
    path = f"images/{name}.png"
    (folder / path).write_bytes(_png(question))
    return path


def _in_all_styles(value: str) -> list[str]:
    return [in_style(value, style) for style in STYLES]


def write_client(
    folder: Path,
    domain: str,
    *,
    house: str,
    pairs: int,
    error_rate: float,
    answers: list[schema.Answer],
    taken: AbstractSet[str],
    rng: np.random.Generator,
) -> int:
    """One client's private pairs, one image each, none of them ``taken``, and its key to the public prompts of its domain."""
    rows = []
    for i in range(pairs):
        question = _ask_new(domain, rng, "clients", taken)
        kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
        pair = err(make_pair(question, house, kind, rng), error_rate, rng)
        name = f"{domain}-{i:05d}"
        rows.append(
            schema.Preference(
                id=name,
                image=_save(question, folder, name),
                prompt=question.prompt,
                chosen=pair.chosen,
                rejected=pair.rejected,
                category=question.category,
                kind=pair.kind,
            )
        )
    schema.write_rows(folder / "preferences.jsonl", rows)
    schema.write_rows(folder / "answers.jsonl", answers)
    return len(rows)


def write_public(folder: Path, styles: Mapping[str, str], n: int, rng: np.random.Generator) -> dict[str, list[schema.Answer]]:
    """``n`` public prompts over the clients' domains in turn; returns each client's private key to its own.

    ``styles`` maps the domains to their clients' house styles.
    """
    domains = list(styles)
    answers: dict[str, list[schema.Answer]] = {domain: [] for domain in domains}

    def fill(fresh: Path) -> int:
        rows = []
        for i in range(n):
            domain = domains[i % len(domains)]
            question, name = draw_question(domain, rng, "public"), f"public-{i:05d}"
            image = _save(question, fresh, name)
            rows.append(schema.Prompt(id=name, image=image, prompt=question.prompt, category=question.category))
            answers[domain].append(
                schema.Answer(id=name, answer=in_style(question.value, styles[domain]), accepted=_in_all_styles(question.value))
            )
        schema.write_rows(fresh / "prompts.jsonl", rows)
        return n

    write_folder(folder, fill)
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
            question, name = _ask_new(suite, rng, "test", taken), f"{suite}-{i:05d}"
            rows.append(
                schema.Question(
                    id=name,
                    image=_save(question, folder, name),
                    prompt=question.prompt,
                    answer=in_style(question.value, houses[0]),
                    category=question.category,
                    accepted=_in_all_styles(question.value),
                    preferred=[in_style(question.value, house) for house in houses[1:]],
                )
            )
        schema.write_rows(folder / f"{suite}.jsonl", rows)
    for domain, house in styles.items():
        judged = []
        for i in range(pairs * len(KINDS)):
            question, name = _ask_new(domain, rng, "test", taken), f"{domain}-pair-{i:05d}"
            pair = make_pair(question, house, KINDS[i % len(KINDS)], rng)
            judged.append(
                schema.Preference(
                    id=name,
                    image=_save(question, folder, name),
                    prompt=question.prompt,
                    chosen=pair.chosen,
                    rejected=pair.rejected,
                    category=question.category,
                    kind=pair.kind,
                )
            )
        schema.write_rows(folder / "pairs" / f"{domain}.jsonl", judged)
    return questions * len(suites)
