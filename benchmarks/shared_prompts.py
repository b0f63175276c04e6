"""How much faster GRPO's steps are when a group's prompt is computed once.

Trains twice with the settings of ``params.yaml``, the same seed and a reward that costs nothing: with TRL's own trainer
and with ours. Prints the seconds of both, their ratio, and the largest difference between the two adapters.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mor.config import GrpoSettings, load_params
from tasks.project import command_line

if TYPE_CHECKING:
    from trl import GRPOTrainer

    from mor.data.public import PublicPrompt


class ShortAnswers:
    """A reward for few characters, in the place of the clients'."""

    __name__ = "short"

    def __init__(self, prompts: list[PublicPrompt]) -> None:
        self.prompts = {prompt.id: prompt for prompt in prompts}

    def __call__(self, completions: list[Any], **_: Any) -> list[float]:
        return [-float(len(completion[-1]["content"])) for completion in completions]


def timed_training(
    base: str, settings: GrpoSettings, prompts: list[PublicPrompt], trainer: type[GRPOTrainer]
) -> tuple[float, dict[str, Any]]:
    """Seconds of a round of ``base`` on ``prompts``, and the adapter that it ends with."""
    from peft import get_peft_model_state_dict

    from mor.alignment.grpo import train_round

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        model, _ = train_round(
            base, ShortAnswers(prompts), settings,  # type: ignore[arg-type]
            seed=0, adapter=None, checkpoints=Path(folder), callbacks=[], trainer_class=trainer,
        )  # fmt: skip
        return time.perf_counter() - began, get_peft_model_state_dict(model)


def measure_speed(steps: Annotated[int, typer.Option(min=1, help="of each training")] = 40) -> None:
    """Train twice and print what differs."""
    import numpy as np
    from PIL import Image
    from trl import GRPOTrainer

    from mor.alignment.shared_prompts import SharedPromptTrainer
    from mor.data.public import PublicPrompt
    from mor.fedvqa.render import draw_question

    params, rng = load_params(), np.random.default_rng(0)
    questions = [draw_question(domain, rng, "public") for domain in ("documents", "medical", "scenes") for _ in range(100)]
    prompts = [PublicPrompt(str(i), q.prompt, Image.fromarray(q.image), None, np.ones(1)) for i, q in enumerate(questions)]
    trainers = (GRPOTrainer, SharedPromptTrainer)
    settings = params.grpo.model_copy(update={"steps": steps, "checkpoint_steps": steps})
    (before, theirs), (after, ours) = (timed_training(params.base, settings, prompts, trainer) for trainer in trainers)
    difference = max(float((theirs[name] - ours[name]).abs().max()) for name in ours)
    print(f"TRL {before:.1f} s, shared prompts {after:.1f} s: {before / after:.2f} times as fast")
    print(f"largest difference between the adapters {difference:.1e}")


if __name__ == "__main__":
    command_line.command(measure_speed)
