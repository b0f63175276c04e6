"""Ask the champion: its answer, and whose opinions shaped answers to prompts of this kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mor.text import printable

BAR = 30  # characters of a weight of 1


def predict(image: Annotated[Path, typer.Option()], prompt: Annotated[str, typer.Option(help="such as 'How many?'")]) -> None:
    """Print the answer, and whose opinions shaped answers to prompts of this kind."""
    from tasks.tracking.predicting import ask_champion

    champion, answer, weights = ask_champion(image, prompt)
    console = Console()
    console.print(printable(answer, None, lines=True), style="bold", markup=False, highlight=False)
    console.print(f"\nmor-policy version {champion.policy}, night {champion.night}; opinions that shaped it:", style="dim")
    width = max(map(len, weights))
    for client, weight in sorted(weights.items(), key=lambda item: -item[1]):
        console.print(f"  {client:<{width}}  {100 * weight:5.1f} %  {'█' * round(BAR * weight)}", highlight=False)
