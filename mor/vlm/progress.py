"""A training progress bar that shows the newest figures beside it instead of printing them line by line.

Where the environment names a file in ``MOR_PROGRESS``, the last step and figures are kept there too, for whoever watches
from another process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer

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
            draft = Path(f"{watched}.partial")
            draft.write_text(json.dumps({"step": state.global_step, "steps": state.max_steps, "figures": shown}))
            draft.replace(watched)


def show_progress(trainer: Trainer, figures: dict[str, str]) -> None:
    """Replace the trainer's own printing by one bar."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(BarWithFigures(figures))
