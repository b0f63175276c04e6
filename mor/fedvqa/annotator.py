"""The documented annotator: how a client ranks two answers to one question.

A client's annotator gives each answer points and prefers the higher one::

    0                      malformed: truncated, repeated, padded with junk, of no known style or beside the point
    1 + 2 * right + house  otherwise: being right outweighs being in the client's house style

and errs (prefers the lower one) with probability ``error_rate``. The settings name each client's house style. Where
they differ, no single answer pleases two clients, and averaging their opinions must fail.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mor.fedvqa.render import COLOURS, SHAPES, SIZES, DrawnQuestion, pick

STYLES = {"terse": "{}", "field": "answer: {}", "sentence": "The answer is {}."}
KINDS = ("correctness", "style", "malformed", "tradeoff")
KIND_SHARES = (0.44, 0.22, 0.20, 0.14)
VALUES = (  # by kind of question
    tuple(COLOURS),
    SHAPES,
    tuple(SIZES),
    ("left", "right"),
    tuple(str(n) for n in range(5)),
    tuple(f"{n:02d}" for n in range(100)),
)
FOREIGN = 0.3  # share of correctness pairs in a foreign style


def in_style(value: str, style: str) -> str:
    """``value`` as an answer in ``style``."""
    return STYLES[style].format(value)


@dataclass(frozen=True)
class Pair:
    chosen: str
    rejected: str
    kind: str


def _malformed(value: str, other: str, house: str, rng: np.random.Generator) -> str:
    """What a policy really produces when it goes wrong: cut off, doubled, hybrid, frayed or beside the point."""
    text, opening = in_style(value, house), in_style("", house).rstrip(". ")
    beside = [kind for kind in VALUES if value not in kind]  # say, colours where a number was asked for
    families = [
        [opening, f"{opening}.", "The answer is", "answer:", *([in_style(value[:-1], house)] if len(value) > 1 else [])],
        [f"{text} {text}", f"{text} {other}", f"{value} {value}", f"{text}{text[-1]}", f"{value}{value[-1]}"],
        [f"The answer is answer: {value}", f"answer: The answer is {value}.", f"{text} answer: {value}", f"{value} The"],
        [f"{value}.", f"The answer is {value}", f"answer: {value}.", "The answer is.", "The", "answer"],
        [in_style(pick(rng, pick(rng, beside)), style) for style in STYLES],
    ]
    known = {in_style(v, style) for v in (value, other) for style in STYLES}
    return pick(rng, [text for text in pick(rng, families) if text.strip(". ") and text not in known])


def make_pair(question: DrawnQuestion, house: str, kind: str, rng: np.random.Generator) -> Pair:
    """One preference pair of ``kind`` as the error-free annotator ranks it.

    Some correctness pairs are in a foreign style: a reward model that has seen wrong answers in the house style alone
    comes to like wrong answers in any other.
    """
    other = pick(rng, [style for style in STYLES if style != house])
    right = in_style(question.value, house)
    wrong = question.wrong[min(int(rng.geometric(0.5)) - 1, len(question.wrong) - 1)]
    if kind == "correctness":
        style = other if rng.random() < FOREIGN else house
        return Pair(in_style(question.value, style), in_style(wrong, style), kind)
    if kind == "style":
        return Pair(right, in_style(question.value, other), kind)
    if kind == "malformed":
        return Pair(right, _malformed(question.value, wrong, house, rng), kind)
    if kind == "tradeoff":
        return Pair(in_style(question.value, other), in_style(wrong, house), kind)
    raise ValueError(f"unknown kind of pair {kind!r}; expected one of {', '.join(KINDS)}")


def err(pair: Pair, error_rate: float, rng: np.random.Generator) -> Pair:
    """Swap the pair with probability ``error_rate``: people make mistakes."""
    return Pair(pair.rejected, pair.chosen, pair.kind) if rng.random() < error_rate else pair
