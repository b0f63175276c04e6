"""How rightly the router routes by how private the clients' means are; after `mor run`, on its data.

Prints the share of the clients' evaluation questions whose owner has the largest weight, and the owner's mean weight, over
several draws of the noise: by components of the basis, by the number of a client's prompts, by epsilon. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mor.config import load_params
from tasks.project import command_line, paths

if TYPE_CHECKING:
    from torch import Tensor

EPSILONS = (0.0, 8.0, 2.0, 1.0)


def routed(
    own: Sequence[Tensor], asked: Sequence[Tensor], public: Tensor, components: int, privacy: dict[str, float], draw: int
) -> tuple[float, float]:
    """Accuracy and the owner's mean weight; ``own`` and ``asked`` are features (N, F) of clients' prompts and questions."""
    import numpy as np
    import torch

    from mor.federation.private_mean import clipped, released
    from mor.routing.means import basis, nearest_mean

    mean, projection = basis(public, components)
    rng = np.random.default_rng(draw)
    told = [released(clipped(rows, mean, projection), torch.ones(len(rows)), rng=rng, **privacy)[0] for rows in own]
    network = nearest_mean(torch.stack(told), torch.ones(len(own), dtype=torch.bool), mean, projection, public)
    weights = [network(rows).softmax(1).detach() for rows in asked]
    right = [float((w.argmax(1) == k).float().mean()) for k, w in enumerate(weights)]
    return float(np.mean(right)), float(np.mean([float(w[:, k].mean()) for k, w in enumerate(weights)]))


def measure_privacy(draws: Annotated[int, typer.Option(min=1, help="of the noise")] = 8) -> None:
    """Read the project's data and print the table."""
    import numpy as np

    from mor.data.schema import load_images
    from mor.federation.server import prompt_features
    from mor.vlm.load import Vlm
    from tasks.project.clients import pairs_of, public_prompts
    from tasks.stages.evaluate import read_suites

    params = load_params(paths.PARAMS)
    base = Vlm.load(params.base, params.evaluation.batch_size)
    public = prompt_features(base, public_prompts())
    counts, own, asked = (300, 30), [], []
    for client, suite in read_suites(params.clients).items():
        if client in params.clients:
            trained, kept = pairs_of(params, client)
            told = [*kept, *trained][: max(counts)]
            own.append(base.prompt_states([row.prompt for row in told], load_images(paths.client_folder(client), told)))
            asked.append(base.prompt_states([row.prompt for row in suite], load_images(paths.EVAL, suite)))
    table = Table("components", "prompts", *(f"epsilon {epsilon:g}" if epsilon else "no noise" for epsilon in EPSILONS))
    for components, count in product((16, 32, 48, 64), counts):
        cells = []
        for epsilon in EPSILONS:
            privacy = {"epsilon": epsilon, "delta": params.boundary.delta}
            drawn = [routed([rows[:count] for rows in own], asked, public, components, privacy, d) for d in range(draws)]
            cells.append(", ".join(f"{value:.3f}" for value in np.mean(drawn, axis=0)))
        table.add_row(str(components), str(count), *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    command_line.command(measure_privacy)
