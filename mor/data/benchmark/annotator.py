"""The documented annotator: how a client ranks two answers to one question.

A client's annotator gives each answer points and prefers the higher one::

    0                      malformed: truncated, repeated, padded with junk, or of no known style
    1 + 2 * right + house  otherwise: being right outweighs being in the client's house style

and errs (prefers the lower one) with probability ``error_rate``. House styles conflict between clients, so no
single answer pleases two of them, and averaging their opinions must fail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mor.data.benchmark.render import Question

STYLES = {"terse": "{}", "field": "answer: {}", "sentence": "The answer is {}."}
HOUSE_STYLE = {"documents": "terse", "medical": "field", "scenes": "sentence"}
KINDS = ("correctness", "style", "malformed", "tradeoff")
KIND_SHARES = (0.50, 0.14, 0.22, 0.14)


def in_style(value: str, style: str) -> str:
    """``value`` as an answer in ``style``."""
    return STYLES[style].format(value)


def points(text: str, value: str, values: tuple[str, ...], house: str) -> int:
    """The annotator's points for ``text``; ``values`` are all values that could be an answer to the question."""
    for style in STYLES:
        for candidate in values:
            if text == in_style(candidate, style):
                return 1 + 2 * (candidate == value) + (style == house)
    return 0


@dataclass(frozen=True)
class Pair:
    chosen: str
    rejected: str
    kind: str


def _malformed(value: str, other: str, house: str, rng: np.random.Generator) -> str:
    """What a policy really produces when it goes wrong, one of four families: cut off, doubled, hybrid or frayed."""
    text, opening = in_style(value, house), in_style("", house).rstrip(". ")
    families = [
        [opening, f"{opening}.", "The answer is", "answer:", *([in_style(value[:-1], house)] if len(value) > 1 else [])],
        [f"{text} {text}", f"{text} {other}", f"{value} {value}", f"{text}{text[-1]}", f"{value}{value[-1]}"],
        [f"The answer is answer: {value}", f"answer: The answer is {value}.", f"{text} answer: {value}", f"{value} The"],
        [f"{value}.", f"The answer is {value}", f"answer: {value}.", "The answer is.", "The", "answer"],
    ]
    known = {in_style(v, style) for v in (value, other) for style in STYLES}
    usable = [variant for variant in families[int(rng.integers(4))] if variant.strip(". ") and variant not in known]
    return usable[int(rng.integers(len(usable)))]


def make_pair(question: Question, house: str, kind: str, rng: np.random.Generator) -> Pair:
    """One preference pair of ``kind`` as the error-free annotator ranks it."""
    others = [style for style in STYLES if style != house]
    right = in_style(question.value, house)
    wrong = question.wrong[min(int(rng.geometric(0.5)) - 1, len(question.wrong) - 1)]
    if kind == "correctness":
        return Pair(right, in_style(wrong, house), kind)
    if kind == "style":
        return Pair(right, in_style(question.value, others[int(rng.integers(len(others)))]), kind)
    if kind == "malformed":
        return Pair(right, _malformed(question.value, wrong, house, rng), kind)
    if kind == "tradeoff":
        return Pair(in_style(question.value, others[int(rng.integers(len(others)))]), in_style(wrong, house), kind)
    raise ValueError(f"unknown kind of pair {kind!r}; expected one of {', '.join(KINDS)}")


def err(pair: Pair, error_rate: float, rng: np.random.Generator) -> Pair:
    """Swap the pair with probability ``error_rate``: people make mistakes."""
    return Pair(pair.rejected, pair.chosen, pair.kind) if rng.random() < error_rate else pair
