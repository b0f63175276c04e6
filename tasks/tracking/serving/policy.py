"""The aligned policy as an MLflow model: ``image`` (base64 PNG) and ``prompt`` -> ``answer`` and every client's weight.

MLflow runs this file where the model is loaded; it needs ``mor`` and nothing else of the project.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from mor.routing.router import Router
from mor.serving import pictures, texts
from mor.vlm.load import Vlm
from mor.vlm.lora import load_policy


class PolicyModel(PythonModel):
    """Answers greedily; a weight says how much a client's opinion shaped answers to prompts like this one."""

    def load_context(self, context: PythonModelContext) -> None:
        """Artifacts: ``policy``, ``router``, and ``base`` unless that is a hub id; settings: ``base``, ``max_tokens``."""
        self.settings: dict[str, Any] = dict(context.model_config)
        base = context.artifacts.get("base", self.settings["base"])
        self.base = Vlm.load(base)
        self.policy = load_policy(base, Path(context.artifacts["policy"]))
        self.router = Router.load(Path(context.artifacts["router"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row a question; raises ``ValueError`` that names the row for what is not answered (``mor.serving``)."""
        prompts = texts("prompt", model_input["prompt"].tolist())
        images = pictures(model_input["image"].tolist())
        answers = self.policy.answer(prompts, images, self.settings["max_tokens"])
        weights = self.router.weights(self.base.prompt_states(prompts, images), [None] * len(prompts))
        columns = {f"weight.{client}": weights[:, k].double().tolist() for k, client in enumerate(self.router.clients)}
        return pd.DataFrame({"answer": answers} | columns)


set_model(PolicyModel())
