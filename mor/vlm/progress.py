"""What a training shows and leaves while it runs: a progress bar with the newest figures beside it, and checkpoints.

Where the environment names a file in ``MOR_PROGRESS``, the last step and figures are kept there too, for whoever watches
from another process.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from mor.files import write_whole

PROGRESS_VARIABLE = "MOR_PROGRESS"


class BarWithFigures(ProgressCallback):
    """Transformers' bar; ``figures`` maps names in the log to short labels."""

    def __init__(self, figures: dict[str, str]) -> None:
        super().__init__()
        self.figures = figures

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        shown = {label: f"{float(logs[name]):.3g}" for name, label in self.figures.items() if logs and name in logs}
        if not shown:
            return
        bar: Any = self.training_bar
        if bar is not None:
            bar.set_postfix(shown)
        if watched := os.environ.get(PROGRESS_VARIABLE):
            told = {"step": state.global_step, "steps": state.max_steps, "figures": shown}
            write_whole(Path(watched), json.dumps(told))


def show_progress(trainer: Trainer, figures: dict[str, str]) -> None:
    """Replace the trainer's own printing by one bar."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(BarWithFigures(figures))


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint that a ``Trainer`` left in ``folder``; what a kill left of others is deleted.

    The trainer's state is written last, and only then are older checkpoints deleted.
    """
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:
            whole.append((json.loads((checkpoint / TRAINER_STATE_NAME).read_text())["global_step"], checkpoint))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(checkpoint)
    return str(max(whole)[1]) if whole else None


class ResumableTrainer(Trainer):
    """A ``Trainer`` that ends with the same weights whether or not it was interrupted on the way."""

    def train_or_resume(self) -> None:
        """Train to the end, from the last whole checkpoint in the output folder where there is one.

        A training that had reached its last step gets its weights and log back; ``train`` would do one step more.
        """
        assert self.args.output_dir is not None
        checkpoint = last_checkpoint(Path(self.args.output_dir))
        state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME)) if checkpoint else None
        if checkpoint and state and state.global_step >= self.args.max_steps:
            self._load_from_checkpoint(checkpoint)
            self.state = state
        else:
            self.train(resume_from_checkpoint=checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read a whole model's weights as ``from_pretrained`` does.

        ``Trainer`` looks for the names that the model has in memory, a vision-language model's file has others, and
        what it does not find it leaves as it is, with a warning.
        """
        model = model or self.model
        if not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
