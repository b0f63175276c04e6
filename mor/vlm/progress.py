"""A training progress bar that shows the newest figures beside it instead of printing them line by line."""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer


class BarWithFigures(ProgressCallback):
    """Transformers' bar; ``figures`` maps names in the log to short labels."""

    def __init__(self, figures: dict[str, str]) -> None:
        super().__init__()
        self.figures = figures

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        bar: Any = self.training_bar
        if bar is not None and logs:
            shown = {label: f"{float(logs[name]):.3g}" for name, label in self.figures.items() if name in logs}
            if shown:
                bar.set_postfix(shown)


def show_progress(trainer: Trainer, figures: dict[str, str]) -> None:
    """Replace the trainer's own printing by one bar."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(BarWithFigures(figures))
