"""Train one client's reward model on its private pairs; runs at the client."""

from __future__ import annotations

import numpy as np
import torch

from mor.config import Params
from mor.data.schema import load_images
from mor.files import move_in
from mor.rewards.calibration import Calibration
from mor.rewards.kinds import load_reward_model, train_reward_model
from mor.seeds import integer
from tasks.project import paths
from tasks.project.checkpoints import resumable
from tasks.project.clients import pairs_of
from tasks.project.decorators import task
from tasks.tracking.runs import stage_run


@task
def train_reward(params: Params, client: str) -> None:
    """Train, calibrate on the pairs kept back, and move the finished reward model into place."""
    settings, backbone = params.rewards, params.clients[client].backbone
    stage = f"reward@{client}"
    with stage_run(stage, {"seed": params.seed, "client": client, "backbone": backbone, "rewards": settings}) as run:
        train, kept = pairs_of(params, client)
        root = paths.client_folder(client)
        key = {"seed": params.seed, "backbone": backbone, "rewards": settings.model_dump()}
        folder = resumable(stage, key, [paths.validated_client(client)])
        seed = integer(params.seed, "reward", client)
        run.dataset(f"{client}.preferences", paths.validated_client(client), len(train) + len(kept), "training")
        fresh, checkpoints = folder / "result", folder / "trainer"
        train_reward_model(fresh, backbone, train, load_images(root, train), settings, seed=seed, checkpoints=checkpoints)
        model = load_reward_model(fresh)
        images = load_images(root, kept)
        chosen, rejected = (
            np.array(model.score([p.prompt for p in kept], images, [getattr(p, side) for p in kept]), dtype=float)
            for side in ("chosen", "rejected")
        )
        Calibration.fit(torch.from_numpy(np.concatenate([chosen, rejected]))).save(fresh / "calibration.json")
        run.metrics({f"reward.{client}.validation_accuracy": float(np.mean(chosen > rejected))})
        move_in(fresh, paths.reward_folder(client))
        run.artifact(paths.reward_folder(client))
