"""A client's reward model as an MLflow model: ``image`` (base64 PNG), ``prompt`` and ``completion`` -> ``score``.

MLflow runs this file where the model is loaded; it needs ``mor`` and nothing else of the project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from mor.rewards.kinds import load_reward_model
from mor.serving import pictures, texts


class ServedReward(PythonModel):
    """Calibrated scores: 0 is an average answer to the client's own questions, 1 a deviation above; NaN is unscorable."""

    def load_context(self, context: PythonModelContext) -> None:
        """Artifacts: ``reward``, and ``backbone`` unless that is a hub id."""
        self.model = load_reward_model(Path(context.artifacts["reward"]), backbone=context.artifacts.get("backbone"))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row an answer; raises ``ValueError`` that names the row for what is not scored (``mor.serving``)."""
        prompts, completions = (texts(column, model_input[column].tolist()) for column in ("prompt", "completion"))
        scores = self.model.score(prompts, pictures(model_input["image"].tolist()), completions)
        return pd.DataFrame({"score": pd.Series(scores, dtype="float64")})


set_model(ServedReward())
