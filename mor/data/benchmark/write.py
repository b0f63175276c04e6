"""Write the embedded benchmark in the bring-your-own folder format (see ``mor.data.schema``).

A generated folder carries a marker file. A folder without one is somebody's own data and is left alone, so a user
replaces any part of the benchmark by putting a folder in its place.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mor.data import schema
from mor.data.benchmark.annotator import HOUSE_STYLE, KIND_SHARES, KINDS, STYLES, err, in_style, make_pair
from mor.data.benchmark.render import HELD_OUT, Question, ask

MARKER = ".generated"


def is_own_data(folder: Path) -> bool:
    """Whether ``folder`` holds data that the benchmark did not write and must not touch."""
    return folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).exists()


def write_folder(folder: Path, fill: Callable[[Path], int]) -> int:
    """Fill a fresh folder and move it into place; returns the number of rows, 0 where somebody's own data stands."""
    if is_own_data(folder):
        return 0
    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "images").mkdir(parents=True)
    rows = fill(fresh)
    (fresh / MARKER).write_text("Written by the benchmark stage. Remove this file to keep your own changes.\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return rows


def _save(question: Question, folder: Path, name: str) -> str:
    path = f"images/{name}.png"
    Image.fromarray(question.image).save(folder / path)
    return path


def _in_all_styles(value: str) -> list[str]:
    return [in_style(value, style) for style in STYLES]


def write_client(
    folder: Path, domain: str, *, pairs: int, error_rate: float, answers: list[schema.Answer], rng: np.random.Generator
) -> int:
    """One client's private pairs, one image each, and its private key to the public prompts of its domain."""
    rows = []
    for i in range(pairs):
        question = ask(domain, rng, "clients")
        kind = KINDS[int(rng.choice(len(KINDS), p=KIND_SHARES))]
        pair = err(make_pair(question, HOUSE_STYLE[domain], kind, rng), error_rate, rng)
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


def write_public(folder: Path, domains: list[str], n: int, rng: np.random.Generator) -> dict[str, list[schema.Answer]]:
    """``n`` public prompts over the clients' domains in turn; returns each client's private key to its own."""
    answers: dict[str, list[schema.Answer]] = {domain: [] for domain in domains}

    def fill(fresh: Path) -> int:
        rows = []
        for i in range(n):
            domain = domains[i % len(domains)]
            question, name = ask(domain, rng, "public"), f"public-{i:05d}"
            image = _save(question, fresh, name)
            rows.append(schema.Prompt(id=name, image=image, prompt=question.prompt, category=question.category))
            answers[domain].append(
                schema.Answer(
                    id=name, answer=in_style(question.value, HOUSE_STYLE[domain]), accepted=_in_all_styles(question.value)
                )
            )
        schema.write_rows(fresh / "prompts.jsonl", rows)
        return n

    write_folder(folder, fill)
    return answers


def write_evaluation(folder: Path, domains: list[str], *, questions: int, pairs: int, rng: np.random.Generator) -> int:
    """One suite a client and the held-out one, and ``pairs`` error-free pairs of each kind a client."""
    for suite in [*domains, HELD_OUT]:
        rows = []
        houses = [HOUSE_STYLE[suite]] if suite in HOUSE_STYLE else [HOUSE_STYLE["documents"], HOUSE_STYLE["scenes"]]
        for i in range(questions):
            question, name = ask(suite, rng, "test"), f"{suite}-{i:05d}"
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
    for domain in domains:
        judged = []
        for i in range(pairs * len(KINDS)):
            question, name = ask(domain, rng, "test"), f"{domain}-pair-{i:05d}"
            pair = make_pair(question, HOUSE_STYLE[domain], KINDS[i % len(KINDS)], rng)
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
    return questions * (len(domains) + 1)
