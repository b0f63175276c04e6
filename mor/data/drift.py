"""Drift: whether a client's new pairs come from where its old ones came from.

Three kinds of difference, each a distance and the probability that chance alone makes one so large (scipy):

- the *shape* of a number (an image's brightness, a prompt's length): the Kolmogorov-Smirnov distance, the largest gap
  between the two cumulative distributions, and its test;
- *categories*: the Jensen-Shannon distance of their shares (Lin 1991; base 2, so in [0, 1]), and the chi-square test;
- *agreement*: how much less often the client's last reward model ranks the new pairs as their annotator did,
  ``share(old) - share(new)``, and Fisher's exact test. Swapped preferences look like any others, but not to a model that
  has learned the old ones.

A difference counts only if it is improbable and large: of thousands of rows every difference is improbable by chance, and
of twenty many are large (Rabanser et al. 2019, "Failing Loudly", use the tests alone).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, fisher_exact, ks_2samp

from mor.config import Drift
from mor.data.schema import Preference

Decision = Literal["continue", "warn", "stop"]
DECISIONS: tuple[Decision, ...] = ("continue", "warn", "stop")  # the later, the graver
PORTION = 1 << 20  # pixels of an image looked at together


@dataclass(frozen=True)
class Finding:
    """One difference between what a client had (before) and what was delivered (after)."""

    name: str  # brightness, prompt_length, categories, agreement...
    statistic: float  # the distance; for agreement what the share fell by, so in [-1, 1]
    p_value: float
    decision: Decision
    before: float  # the median, the share of the category that changed most, or the share of pairs agreed on
    after: float
    warn: float  # distances from which on it is worth a warning, and from which on the delivery is held back
    stop: float
    text: str  # all of it in words


def decide(findings: Sequence[Finding]) -> Decision:
    """The gravest decision of all findings; continue where there are none."""
    return max((finding.decision for finding in findings), key=DECISIONS.index, default="continue")


def shape(name: str, before: ArrayLike, after: ArrayLike, limits: Drift) -> Finding:
    """Two samples of a number, of shapes (N,) and (M,)."""
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    found = ks_2samp(old, new, method="asymp")
    middle = float(np.median(old)), float(np.median(new))
    text = f"median {middle[1]:.3g}, was {middle[0]:.3g}"
    return _finding(name, "shape", found.statistic, found.pvalue, middle, text, limits)


def categories(before: Sequence[str | None], after: Sequence[str | None], limits: Drift) -> Finding:
    """Categories of old and new rows; a row without one counts as a category of its own."""
    old, new = Counter(before), Counter(after)
    names = sorted(old.keys() | new.keys(), key=str)
    counts = np.array([[side[name] for name in names] for side in (old, new)], dtype=np.float64)  # (2, categories)
    shares = counts / counts.sum(axis=1, keepdims=True)
    p_value = float(chi2_contingency(counts).pvalue) if len(names) > 1 else 1.0
    most = int(np.abs(shares[1] - shares[0]).argmax())
    moved = float(shares[0, most]), float(shares[1, most])
    text = f"the category that changed most is {moved[1]:.0%} of the rows, was {moved[0]:.0%}"  # its name is the client's
    return _finding("categories", "categories", jensenshannon(*shares, base=2), p_value, moved, text, limits)


def agreement(before: Sequence[bool], after: Sequence[bool], limits: Drift) -> Finding:
    """Whether a reward model ranks each old and each new pair as its annotator did; neither may be empty."""
    table = [[sum(side), len(side) - sum(side)] for side in (before, after)]
    share = float(np.mean(before)), float(np.mean(after))
    p_value = float(fisher_exact(table, alternative="greater").pvalue)  # are the old ones agreed on more?
    text = f"the last reward model agrees with {share[1]:.0%} of the pairs, it did with {share[0]:.0%}"
    return _finding("agreement", "agreement", share[0] - share[1], p_value, share, text, limits)


def _finding(
    name: str, kind: str, statistic: float, p_value: float, sides: tuple[float, float], text: str, limits: Drift
) -> Finding:
    warn, stop = getattr(limits, f"{kind}_warn"), getattr(limits, f"{kind}_stop")
    decision: Decision = "continue"
    if p_value <= limits.significance and statistic >= warn:
        decision = "stop" if statistic >= stop else "warn"
    return Finding(name, float(statistic), float(p_value), decision, *sides, warn, stop, text)


def image_statistics(image: Image.Image) -> dict[str, float]:
    """Mean and deviation of an RGB image's brightness and its colourfulness, in [0, 1]; width and height in pixels."""
    count = image.width * image.height
    sums = sum((np.array([grey.sum(), saturation.sum()]) for grey, saturation in _parts(image)), np.zeros(2))
    brightness, saturated = sums / count
    variance = sum(((grey - brightness) ** 2).sum() for grey, _ in _parts(image)) / count
    found = {"brightness": brightness, "contrast": np.sqrt(variance), "saturation": saturated}
    return {name: float(value) for name, value in (found | {"width": image.width, "height": image.height}).items()}


def _parts(image: Image.Image) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Brightness and colourfulness of every pixel, each of shape (h, W), some rows at a time: memory stays bounded."""
    rows = max(1, PORTION // image.width)
    for top in range(0, image.height, rows):
        pixels = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))), dtype=np.float64) / 255
        yield pixels.mean(axis=2), pixels.max(axis=2) - pixels.min(axis=2)


def differences(
    before: Sequence[Preference],
    after: Sequence[Preference],
    pictures: tuple[Mapping[str, ArrayLike], Mapping[str, ArrayLike]],
    limits: Drift,
) -> list[Finding]:
    """Every difference that can be seen without a model; ``pictures`` are columns of image statistics, old and new."""
    findings = [shape(name, values, pictures[1][name], limits) for name, values in pictures[0].items()]
    for text in ("prompt", "chosen", "rejected"):
        old, new = ([len(getattr(row, text)) for row in rows] for rows in (before, after))
        findings.append(shape(f"{text}_length", old, new, limits))
    return [*findings, categories([row.category for row in before], [row.category for row in after], limits)]
