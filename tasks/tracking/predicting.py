"""Registered models, asked: a picture as they take it, and the champion's answer."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from mor.data.pictures import opened, pixels, png_bytes, why
from mor.errors import UserError
from tasks.tracking.registry import POLICY, Candidate, required_champion
from tasks.tracking.store import quiet_mlflow

WEIGHT = "weight."  # before a client's name, among the policy's columns


def load_registered(name: str, version: int) -> Any:
    """A registered model, ready to predict."""
    with quiet_mlflow():
        from mlflow import pyfunc

        return pyfunc.load_model(f"models:/{name}/{version}")


def encoded(image: Path) -> str:
    """An image file as the models take it: base64 of a PNG. Raises ``UserError`` if it is none."""
    try:
        with opened(image) as picture:
            return base64.b64encode(png_bytes(pixels(picture))).decode()
    except FileNotFoundError:
        raise UserError(f"{image}: no such file; name a picture") from None
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:  # PIL's
        raise UserError(f"{image}: cannot be read as a picture ({why(error)}); save it again as PNG") from None


def ask_champion(image: Path, prompt: str) -> tuple[Candidate, str, dict[str, float]]:
    """The champion, its answer, and each client's weight for such a prompt. Raises ``UserError`` without a champion."""
    picture, serving = encoded(image), required_champion()
    row = load_registered(POLICY, serving.policy).predict(pd.DataFrame([{"image": picture, "prompt": prompt}])).iloc[0]
    weights = {name.removeprefix(WEIGHT): float(np.round(row[name], 4)) for name in row.index if name.startswith(WEIGHT)}
    return serving, str(row["answer"]), weights
