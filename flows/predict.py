"""Ask the champion: ``python -m flows.predict --image x.png --prompt "How many?"``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from tasks.registry import ask
from tasks.runtime import main

BAR = 30  # characters of a weight of 1


def predict(image: Path, prompt: str) -> None:
    """Print the answer, and whose opinions shaped answers to prompts of this kind."""
    champion, answer, weights = ask(image, prompt)
    console = Console()
    console.print(answer, style="bold", markup=False, highlight=False)
    console.print(f"\nmor-policy version {champion.policy}, night {champion.night}; opinions that shaped it:", style="dim")
    width = max(map(len, weights))
    for client, weight in sorted(weights.items(), key=lambda item: -item[1]):
        console.print(f"  {client:<{width}}  {100 * weight:5.1f} %  {'█' * round(BAR * weight)}", highlight=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.predict", description=__doc__)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    given = parser.parse_args()
    main(predict, given.image, given.prompt)
