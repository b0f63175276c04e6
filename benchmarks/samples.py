"""Draw `docs/images/samples.png`, the README's questions with the answers before and after; after `mor run`, from its outputs.

Each suite gives the first questions to which only the aligned policy gives the preferred answer, one a category: a picture
of what aligning changes, not of how often (the tables say that).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mor.errors import ConfigError
from mor.evaluation.metrics import Evaluation, Judged
from tasks.project import command_line, paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = Path("docs") / "images" / "samples.png"
COLUMNS = 6
GREY, GREEN = "#6b7280", "#15803d"


def changed(evaluation: Evaluation, suite: str) -> Iterator[tuple[Judged, Judged]]:
    """Base and aligned reply to the first question of each category that only the aligned policy answers as preferred."""
    seen: set[str] = set()
    for base, aligned in zip(evaluation.answers["base"][suite], evaluation.answers["aligned"][suite], strict=True):
        if aligned.preferred and not base.preferred and base.category not in seen:
            seen.add(base.category)
            yield base, aligned


def strip(evaluation: Evaluation, count: int) -> list[tuple[str, Judged, Judged]]:
    """``count`` questions with their suite, taken from the suites in turn so that each is shown alike."""
    queues = {suite: list(changed(evaluation, suite)) for suite in evaluation.suites}
    turns = ((suite, queue[turn]) for turn in range(count) for suite, queue in queues.items() if turn < len(queue))
    picked = [(suite, *replies) for suite, replies in turns][:count]
    return sorted(picked, key=lambda item: list(queues).index(item[0]))


def panel(axes: Axes, suite: str, base: Judged, aligned: Judged) -> None:
    """A question's picture, with the two answers below it."""
    from textwrap import fill

    from matplotlib.image import imread

    axes.imshow(imread(paths.EVAL / base.image), cmap="gray", interpolation="nearest")
    axes.set_title(suite.replace("_", "-"), fontsize=9, fontweight="bold", loc="left")
    axes.set_axis_off()
    lines = [(base.prompt, "black"), (f"before: {base.text}", GREY), (f"after: {aligned.text}", GREEN)]
    for slot, (text, colour) in enumerate(lines):  # two lines of text each
        axes.text(0, -0.06 - 0.21 * slot, fill(text, 25), transform=axes.transAxes, fontsize=8, color=colour, va="top")


def draw(count: Annotated[int, typer.Option(min=1, help="questions shown")] = COLUMNS) -> None:
    """Write the strip."""
    from matplotlib.figure import Figure

    if not paths.EVALUATION.exists():
        raise ConfigError(f"{paths.EVALUATION}: no such file; `mor run` makes it, with the pictures that are drawn")
    picked = strip(Evaluation.model_validate_json(paths.EVALUATION.read_bytes()), count)
    figure = Figure(figsize=(1.75 * len(picked), 3.0))
    figure.subplots_adjust(left=0.005, right=0.995, top=0.92, bottom=0.36, wspace=0.06)
    for axes, (suite, base, aligned) in zip(figure.subplots(1, len(picked), squeeze=False)[0], picked, strict=True):
        panel(axes, suite, base, aligned)
    figure.savefig(SAMPLES, dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    command_line.command(draw)
