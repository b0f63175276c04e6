"""Images, questions and answers of the embedded data.

Every domain is one function that draws an image, shape (32, 32, 3), uint8, and returns all questions about it.
Handwriting is real: the UCI digits that ship with scikit-learn (1797 images of 8 x 8), split by *source digit*
into disjoint pools, so that no digit seen in training is seen in a test. Phantoms and shapes are procedural;
their splits differ by random stream, and validation checks by content hash that no image is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mor.config import HELD_OUT

Option = TypeVar("Option")
SIZE = 32  # pixels a side
POOLS = {"pretrain": (0.0, 0.42), "clients": (0.42, 0.66), "public": (0.66, 0.83), "test": (0.83, 1.0)}
COLOURS = {"red": (214, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220), "yellow": (235, 205, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
CORNERS = ("top left", "top right", "bottom left", "bottom right")
COUNT_SHAPES = ("How many shapes are there?", "Count the shapes.")
SIZES = {"small": 2.0, "medium": 3.5, "large": 5.5}  # radius of a finding in pixels


@dataclass(frozen=True)
class DrawnQuestion:
    """One image with a question; ``wrong`` lists plausible wrong values, the nearest misses first."""

    image: NDArray[np.uint8]
    prompt: str
    value: str
    wrong: tuple[str, ...]
    category: str
    caption: str  # everything there is to see: supervision for pre-training, never shown to clients
    cells: Sequence[str]  # what lies in each quarter, row by row: supervision for the vision tower


@dataclass(frozen=True)
class Drawing:
    """An image and what is in it, as a question has them."""

    image: NDArray[np.uint8]
    caption: str
    cells: Sequence[str]

    def ask(self, prompt: str, value: str, others: Iterable[str], category: str) -> DrawnQuestion:
        """A question whose wrong values are the ``others``, in order."""
        wrong = tuple(other for other in dict.fromkeys(others) if other != value)
        return DrawnQuestion(self.image, prompt, value, wrong, category, self.caption, self.cells)


class Digits(NamedTuple):
    """A pool of handwritten digits: images (N, 8, 8) in [0, 1] and labels (N,)."""

    images: NDArray[np.float64]
    labels: NDArray[np.int64]


@cache
def digit_pool(pool: str) -> Digits:
    """The source digits of one split; pools are disjoint and the same on every machine."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(1797).permutation(len(data.target))
    low, high = (int(share * len(order)) for share in POOLS[pool])
    chosen = order[low:high]
    return Digits(data.images[chosen] / 16.0, data.target[chosen].astype(np.int64))


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    """One of the options, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def _paste_digit(canvas: Image.Image, pool: Digits, rng: np.random.Generator, x: int, y: int) -> str:
    """Write one handwritten digit in dark ink into the 16 x 16 cell at (x, y); returns its label."""
    index = int(rng.integers(len(pool.labels)))
    side = int(rng.integers(12, 16))
    ink = Image.fromarray((pool.images[index] * 255).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    ink = ink.point(lambda value: min(255, int(value * 1.25)))
    offset = (x + int(rng.integers(0, 17 - side)), y + int(rng.integers(0, 17 - side)))
    shade = int(rng.integers(0, 70))
    canvas.paste((shade, shade, shade + 20), offset, ink)
    return str(pool.labels[index])


def _number(canvas: Image.Image, pool: Digits, rng: np.random.Generator, y: int) -> str:
    return _paste_digit(canvas, pool, rng, 0, y) + _paste_digit(canvas, pool, rng, 16, y)


def _near_numbers(value: str, rng: np.random.Generator, n: int) -> list[str]:
    """``n`` two-digit numbers that differ from ``value`` in one digit."""
    wrong: list[str] = []
    while len(wrong) < n:
        place, digit = int(rng.integers(2)), str(rng.integers(10))
        other = value[:place] + digit + value[place + 1 :]
        if other != value and other not in wrong:
            wrong.append(other)
    return wrong


def documents(rng: np.random.Generator, pool: str) -> list[DrawnQuestion]:
    """Handwritten two-digit numbers: alone, in a two-field form, or on a coloured label."""
    digits = digit_pool(pool)
    kind = pick(rng, ("number", "form", "form", "label"))
    paper = int(rng.integers(225, 256))
    canvas = Image.new("RGB", (SIZE, SIZE), (paper, paper, paper - 10))
    draw = ImageDraw.Draw(canvas)
    if kind == "form":
        numbers = {"top": _number(canvas, digits, rng, 0), "bottom": _number(canvas, digits, rng, 16)}
        draw.line((0, 16, SIZE, 16), fill=(150, 150, 170))
        cells = "".join(numbers.values())
        prompts = ("What is the {} number?", "Read the {} field.")
    else:
        y = int(rng.integers(0, 17))
        if kind == "label":
            draw.rectangle((0, y - 1, SIZE, y + 16), fill=_tint(pick(rng, tuple(COLOURS)), 0.55))
        numbers = {kind: _number(canvas, digits, rng, y)}
        cells = f"{numbers[kind]}  " if y < 8 else f"  {numbers[kind]}"
        prompts = ("What number is on the {}?" if kind == "label" else "What {} is written?", "Read the {}.")
    drawing = Drawing(np.asarray(canvas), ", ".join(numbers.values()), cells)
    return [_read(rng, drawing, prompts, place, numbers, f"document_{kind}") for place in numbers]


def _tint(colour: str, strength: float) -> tuple[int, int, int]:
    red, green, blue = (int(255 - (255 - channel) * strength) for channel in COLOURS[colour])
    return red, green, blue


def _read(
    rng: np.random.Generator, drawing: Drawing, prompts: tuple[str, ...], place: str, numbers: dict[str, str], category: str
) -> DrawnQuestion:
    """Ask for the number at ``place``; another number in the image is a plausible wrong answer."""
    wrong = [*_near_numbers(numbers[place], rng, 3), *numbers.values()]
    return drawing.ask(pick(rng, prompts).format(place), numbers[place], wrong, category)


def _findings(rng: np.random.Generator, n: int, radii: list[float]) -> list[tuple[float, float, float]]:
    """Centres and radii of ``n`` findings inside the body that keep clear of each other and of the midline."""
    placed: list[tuple[float, float, float]] = []
    while len(placed) < n:
        radius = radii[len(placed)]
        x, y = rng.uniform(6, 26), rng.uniform(7, 25)
        inside = ((x - 16) / (13.5 - radius)) ** 2 + ((y - 16) / (14.5 - radius)) ** 2 < 1
        clear = abs(x - 16) > radius + 0.5 and all(np.hypot(x - a, y - b) > radius + r + 1.5 for a, b, r in placed)
        if inside and clear:
            placed.append((x, y, radius))
    return placed


def _finding_cells(found: list[tuple[float, float, float]]) -> list[str]:
    """The sizes and the number of the findings whose centres lie in each quarter."""
    names: list[list[str]] = [[], [], [], []]
    for x, y, radius in found:
        names[2 * (y >= 16) + (x >= 16)] += [name for name, size in SIZES.items() if size == radius]
    return [" ".join([*quarter, str(len(quarter))]) if quarter else "" for quarter in names]


def medical(rng: np.random.Generator, pool: str) -> list[DrawnQuestion]:
    """Scan phantoms: a body outline, speckle, and bright findings to count, locate or size."""
    n = int(rng.choice([0, 1, 2, 3, 4], p=[0.1, 0.6, 0.1, 0.1, 0.1]))
    names = [pick(rng, tuple(SIZES)) for _ in range(n)] if n == 1 else ["small"] * n
    found = _findings(rng, n, [SIZES[name] for name in names])
    ys, xs = np.mgrid[0:SIZE, 0:SIZE]
    body = ((xs - 15.5) / 14.5) ** 2 + ((ys - 15.5) / 15.5) ** 2
    scan = np.where(body < 1, rng.uniform(60, 90), rng.uniform(5, 20))
    scan = np.where((body >= 0.86) & (body < 1), rng.uniform(120, 160), scan)
    for x, y, radius in found:
        edge = np.clip(radius + 0.5 - np.hypot(xs - x, ys - y), 0, 1)
        scan = scan + edge * rng.uniform(70, 120)
    scan = np.clip(scan + rng.normal(0, 12, scan.shape), 0, 255) // 8 * 8  # 32 grey levels, as a scanner would quantise
    image = np.repeat(scan.astype(np.uint8)[..., None], 3, axis=2)
    side = "left" if found and found[0][0] < 16 else "right"
    drawing = Drawing(image, f"1 finding, {names[0]}, {side}" if n == 1 else f"{n} findings", _finding_cells(found))
    prompts = ("How many findings are there?", "Count the findings.")
    count = drawing.ask(pick(rng, prompts), str(n), _near(n, 0, 4), "medical_count")
    if n != 1:
        return [count]
    prompts = ("On which side is the finding?", "Is the finding left or right?")
    where = drawing.ask(pick(rng, prompts), side, ("left", "right"), "medical_side")
    order = tuple(SIZES)
    nearest = sorted(order, key=lambda other: abs(order.index(other) - order.index(names[0])))
    prompts = ("How large is the finding?", "What size is the finding?")
    size = drawing.ask(pick(rng, prompts), names[0], nearest, "medical_size")
    return [where, size, count] if rng.random() < 0.15 else [where, size]


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, fill: tuple[int, int, int], x: int, y: int, side: int) -> None:
    box = (x, y, x + side, y + side)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "triangle":
        draw.polygon([(x + side / 2, y), (x, y + side), (x + side, y + side)], fill=fill)
    else:
        third = side // 3
        draw.rectangle((x + third, y, x + side - third, y + side), fill=fill)
        draw.rectangle((x, y + third, x + side, y + side - third), fill=fill)


def scenes(rng: np.random.Generator, pool: str) -> list[DrawnQuestion]:
    """One to four coloured shapes, one a corner: attributes of a corner, how many there are, left-right relations."""
    n = int(rng.integers(1, 5))
    corners = sorted(rng.permutation(4)[:n].tolist())
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:n]]
    colours = [pick(rng, tuple(COLOURS)) for _ in range(n)]
    ground = int(rng.integers(15, 60))
    canvas = Image.new("RGB", (SIZE, SIZE), (ground, ground, ground))
    draw = ImageDraw.Draw(canvas)
    for corner, shape, colour in zip(corners, shapes, colours, strict=True):
        side = int(rng.integers(8, 14))
        x, y = (16 * (corner % 2) + int(rng.integers(1, 16 - side)), 16 * (corner // 2) + int(rng.integers(1, 16 - side)))
        shade = rng.uniform(0.7, 1.0)
        red, green, blue = (int(channel * shade) for channel in COLOURS[colour])
        _draw_shape(draw, shape, (red, green, blue), x, y, side)
    named = {p: f"{c} {s}" for c, s, p in zip(colours, shapes, corners, strict=True)}
    caption = ", ".join(f"{what} {CORNERS[p]}" for p, what in named.items())
    drawing = Drawing(np.asarray(canvas), caption, [named.get(p, "") for p in range(4)])
    questions = [drawing.ask(pick(rng, COUNT_SHAPES), str(n), _near(n, 1, 4), "scene_count")]
    for shape, colour, corner in zip(shapes, colours, corners, strict=True):
        place = CORNERS[corner]
        prompts = (f"What colour is the {place} shape?", f"Name the {place} colour.")
        questions.append(drawing.ask(pick(rng, prompts), colour, [*colours, *COLOURS], "scene_colour"))
        prompts = (f"What shape is in the {place} corner?", f"Name the {place} shape.")
        questions.append(drawing.ask(pick(rng, prompts), shape, [*shapes, *SHAPES], "scene_shape"))
        questions.append(drawing.ask(f"Where is the {shape}?", place, CORNERS, "scene_place"))  # a lesson for relations
    across = [(i, j) for i in range(n) for j in range(n) if corners[i] % 2 != corners[j] % 2]
    for i, j in [across[k] for k in rng.permutation(len(across))[:2]]:
        first, second, where = shapes[i], shapes[j], "left" if corners[i] % 2 == 0 else "right"
        prompts = (f"Is the {first} left or right of the {second}?", f"On which side of the {second} is the {first}?")
        questions.append(drawing.ask(pick(rng, prompts), where, ("left", "right"), "scene_relation"))
    return questions


def _near(n: int, lowest: int, highest: int) -> list[str]:
    """The counts of a range, those nearest to ``n`` first."""
    return [str(c) for c in sorted(range(lowest, highest + 1), key=lambda c: abs(c - n))]


def mixed(rng: np.random.Generator, pool: str) -> list[DrawnQuestion]:
    """The held-out category: a handwritten number inside one of two coloured bands (documents x scenes)."""
    digits = digit_pool(pool)
    names = [tuple(COLOURS)[i] for i in rng.permutation(len(COLOURS))[:2]]
    canvas = Image.new("RGB", (SIZE, SIZE), (240, 240, 235))
    draw = ImageDraw.Draw(canvas)
    numbers = {}
    for row, name in enumerate(names):
        draw.rectangle((0, 16 * row, SIZE, 16 * row + 15), fill=_tint(name, 0.7))
        numbers[name] = _number(canvas, digits, rng, 16 * row)
    caption = ", ".join(f"{name} {number}" for name, number in numbers.items())
    drawing = Drawing(np.asarray(canvas), caption, "".join(numbers.values()))
    prompts = ("What number is in the {} field?", "Read the {} field.")
    return [_read(rng, drawing, prompts, name, numbers, "mixed_field") for name in names]


DOMAINS: dict[str, Callable[[np.random.Generator, str], list[DrawnQuestion]]] = {
    "documents": documents,
    "medical": medical,
    "scenes": scenes,
    HELD_OUT: mixed,
}

# What clients and suites ask, by domain: the shares of the categories of question. Pre-training asks for places too.
CATEGORIES = {
    "documents": {"document_form": 0.5, "document_number": 0.25, "document_label": 0.25},
    "medical": {"medical_count": 0.75, "medical_side": 0.125, "medical_size": 0.125},
    "scenes": {"scene_colour": 0.40, "scene_shape": 0.28, "scene_count": 0.24, "scene_relation": 0.08},
    HELD_OUT: {"mixed_field": 1.0},
}


def draw_question(domain: str, rng: np.random.Generator, pool: str) -> DrawnQuestion:
    """One question about one fresh image; ``pool`` names the split that handwriting is drawn from."""
    shares = CATEGORIES[domain]
    category = str(rng.choice(list(shares), p=list(shares.values())))
    while True:
        if fitting := [question for question in DOMAINS[domain](rng, pool) if question.category == category]:
            return pick(rng, fitting)
