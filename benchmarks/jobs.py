"""What the benchmark's jobs do: the pipeline's own stages, in the workspace that is the working folder.

This module and ``benchmarks.adaptation`` are the ones that call ``tasks.stages`` to measure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.catalogue import POOLED, WEAK, ClientChange, Recipe
from benchmarks.results import Measurement, pack_hits, write_results
from benchmarks.settings import learning_rate, start_model, with_changes
from benchmarks.workspace import share
from mor.config import Params, Zoo
from mor.data.schema import Answer, Preference, load_images, read_rows, write_rows
from mor.federation.ledger import Ledger
from mor.files import fresh_folder, read_json, write_whole
from mor.seeds import integer, stream
from tasks.project import paths
from tasks.project.checkpoints import resumable
from tasks.tracking import runs as tracking

if TYPE_CHECKING:
    from benchmarks.plan import PlannedCase
    from mor.vlm.load import Vlm

DONE = "done"  # in a workspace of data: all of it is there
ROWS = "rows.csv"  # in a workspace of a method: its result


def make_weak_backbone(zoo: Zoo, like: str) -> None:
    """The zoo model ``like`` once more with a tenth of its parameters."""
    from mor.fedvqa.architectures import Size
    from mor.fedvqa.zoo import train_zoo_model

    size = Size(hidden=40, layers=2, vision_hidden=40, vision_layers=2)
    model, processor, _ = train_zoo_model(zoo.models[like], zoo, paths.checkpoint_folder("weak"), size)
    with fresh_folder(Path(WEAK)) as draft:
        model.save_pretrained(str(draft))
        processor.save_pretrained(str(draft))


def make_data(params: Params, thin: Mapping[str, float], attackers: Mapping[str, float], own: Sequence[str]) -> None:
    """Data and validation of a federation, then what the setting takes from clients, all pairs pooled, and the attackers'.

    ``thin`` is the share of its pairs that a client keeps, ``attackers`` the share in which one prefers the worse answer.
    """
    from tasks.stages.fedvqa import write_fedvqa
    from tasks.stages.validate import validate_data

    _once("fedvqa", lambda: write_fedvqa(params.seed, params.fedvqa))
    validate_data(own, params.validation)
    for client, kept in thin.items():
        rows = read_rows(paths.validated_client(client), Preference)
        write_rows(paths.validated_client(client), rows[: round(kept * len(rows))])
    pooled = pool_pairs(own)
    for client, error_rate in attackers.items():
        some = turn_some(pooled, params.fedvqa.pairs, error_rate, stream(params.seed, "extra", client))
        write_rows(paths.validated_client(client), some)
        write_lies(client, own)
    write_rows(paths.validated_client(POOLED), pooled)
    for client in (POOLED, *attackers):
        for name in own:  # their pictures, as if they were its own
            share(paths.client_folder(name), paths.client_folder(client) / name)
    Path(DONE).touch()


def pool_pairs(own: Sequence[str]) -> list[Preference]:
    """The pairs of all clients; ids and images begin with the client's name."""
    pairs = [(name, row) for name in own for row in read_rows(paths.validated_client(name), Preference)]
    return [row.model_copy(update={"id": f"{name}/{row.id}", "image": f"{name}/{row.image}"}) for name, row in pairs]


def turn_some(pairs: Sequence[Preference], most: int, error_rate: float, rng: np.random.Generator) -> list[Preference]:
    """``most`` of the pairs, or all where there are fewer, in their order; so many of them the wrong way round."""
    count = min(most, len(pairs))
    drawn = [pairs[i] for i in sorted(rng.choice(len(pairs), count, replace=False).tolist())]
    turned = [row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen}) for row in drawn]
    return [wrong if swap else row for row, wrong, swap in zip(drawn, turned, rng.random(count) < error_rate, strict=True)]


def write_lies(client: str, own: Sequence[str]) -> None:
    """An attacker's answer key: asked "A or B?", it names the right answer in a style that the owner does not want."""
    answers = [row for name in own for row in read_rows(paths.client_answers(name), Answer)]
    lies = [next((a for a in row.accepted if a != row.answer), row.answer) for row in answers]
    flipped = [row.model_copy(update={"answer": lie, "accepted": []}) for row, lie in zip(answers, lies, strict=True)]
    write_rows(paths.client_answers(client), flipped)


def make_reward(params: Params, client: str) -> None:
    """One client's reward model."""
    from tasks.stages.reward import train_reward

    _once(f"reward@{client}", lambda: train_reward(params, client))


def _once(stage: str, run: Callable[[], None]) -> float:
    """Run a stage of this workspace unless it is done; returns its seconds."""
    if not paths.stage_metrics(stage).exists():
        run()
    return float(read_json(paths.stage_metrics(stage))["seconds"])


# --- methods ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedMethod:
    """A trained method: its policy, what it cost in bytes and seconds, and what was seen (measure, suite, value)."""

    policy: Vlm
    ledger: Ledger
    seconds: Mapping[str, float]
    seen: Sequence[tuple[str, str, float]] = ()


def measure_method(planned: PlannedCase, own: Sequence[str]) -> None:
    """Train and evaluate one method; its result are the rows of ``ROWS``. ``own`` are the clients that have a suite."""
    from tasks.stages.evaluate import answer_suites, read_suites

    case, params = planned.case, planned.own.params
    outcome, (_, rate) = train_method(planned), learning_rate(params, planned.recipe)

    def row(measure: str, suite: str, value: float, n: int = 0, hits: str = "") -> Measurement:
        key = planned.own.key
        return Measurement(case.listed, case.method, rate, case.seed, measure, suite, float(value), n, hits, key)

    rows = [row(*seen) for seen in outcome.seen]
    longest = params.grpo.max_completion_tokens
    for suite, answers in answer_suites(outcome.policy, read_suites(own), longest, case.method).items():
        for measure, flag in (("preference", "preferred"), ("accuracy", "right")):
            hits = [bool(answer[flag]) for answer in answers]
            rows.append(row(measure, suite, sum(hits) / len(hits), len(hits), pack_hits(hits)))
    rows += [row(f"{way}_bytes", name, outcome.ledger.total(name, way)) for name in own for way in ("up", "down")]
    rows += [row("seconds", part, value) for part, value in outcome.seconds.items()]
    rows.append(row("seconds", "total", sum(outcome.seconds.values())))
    with tracking.stage_run("benchmark", {"method": case.method, "setting": case.setting, "learning_rate": rate}) as run:
        run.headline({f"{r.measure.replace(':', '.')}.{r.suite.replace('@', '.')}": r.value for r in rows})
    write_results(Path(ROWS), rows)


def train_method(planned: PlannedCase) -> TrainedMethod:
    """Train as the recipe says, with the reward models that the workspace shares."""
    from mor.vlm.load import Vlm

    recipe, federation, params = planned.recipe, planned.federation, planned.own.params
    if recipe.objective == "none":
        return TrainedMethod(Vlm.load(params.base, params.evaluation.batch_size), Ledger(), {})
    if recipe.averages:
        return average_parameters(recipe, params)
    honest = {client: made.folder for client, made in planned.rewards.items()}
    for client, factor in federation.inflate.items():
        if client in honest:
            inflate(client, factor, honest[client] / paths.reward_folder(client))
    metrics = [read_json(folder / paths.stage_metrics(f"reward@{client}")) for client, folder in honest.items()]
    spent = sum(known.get("seconds", 0.0) for known in metrics)
    change = federation.change
    outcome = align_through_change(change, recipe.again, params) if change else run_pipeline(params)
    return replace(outcome, seconds={"reward_models": spent, **outcome.seconds})


def run_pipeline(params: Params) -> TrainedMethod:
    """The pipeline's own router and alignment."""
    from mor.vlm.lora import load_policy
    from tasks.stages.align import align_policy
    from tasks.stages.router import fit_router

    if params.router.kind in ("preferences", "static"):
        params = share_anchors(params)
    router, alignment = _once("router", lambda: fit_router(params)), _once("align", lambda: align_policy(params))
    ledger = Ledger.load(paths.ROUTER / "ledger.json", paths.POLICY / "ledger.json")
    kl = read_json(paths.stage_metrics("align"))["align.kl"]
    policy = load_policy(params.base, paths.POLICY, params.evaluation.batch_size)
    return TrainedMethod(policy, ledger, {"router": router, "alignment": alignment}, [("kl", "all", kl)])


def align_through_change(change: ClientChange, again: bool, params: Params) -> TrainedMethod:
    """Alignment in which a client changes half way."""
    from benchmarks.adaptation import adapt
    from mor.vlm.lora import load_policy

    ledger, began = Ledger(), time.perf_counter()
    adapter, seen = adapt(params, change, again, ledger)
    seconds = {"alignment": time.perf_counter() - began}
    return TrainedMethod(load_policy(params.base, adapter, params.evaluation.batch_size), ledger, seconds, seen)


def average_parameters(recipe: Recipe, params: Params) -> TrainedMethod:
    """Parameter averaging over the clients' training pairs."""
    from mor.baselines.averaging import Averaging, federated_average
    from mor.vlm.lora import load_policy
    from tasks.project.clients import pairs_of

    assert recipe.objective in ("sft", "dpo")
    ledger, began = Ledger(), time.perf_counter()
    plan, start = params.benchmark.averaging, start_model(params.base, params.clients, recipe)
    own = {client: pairs_of(params, client)[0] for client in params.clients}
    private = {client: (pairs, load_images(paths.client_folder(client), pairs)) for client, pairs in own.items()}
    settings = Averaging(
        objective=recipe.objective, rounds=plan.rounds, local_steps=plan.local_steps, batch_size=plan.batch_size,
        learning_rate=plan.learning_rate, beta=params.rewards.beta,
        proximal=plan.proximal if recipe.proximal else 0.0, lora=params.grpo.lora,
    )  # fmt: skip
    inputs = [paths.validated_client(client) for client in params.clients]
    folder = resumable("averaging", {"seed": params.seed, "start": start, "averaging": vars(settings)}, inputs)
    seed = integer(params.seed, "averaging")
    adapter = federated_average(start, private, settings, seed=seed, ledger=ledger, folder=folder)
    seconds = {"alignment": time.perf_counter() - began}
    return TrainedMethod(load_policy(start, adapter, params.evaluation.batch_size), ledger, seconds)


def inflate(client: str, factor: float, honest: Path) -> None:
    """Make the scores of this workspace's reward model of a client ``factor`` times those of the ``honest`` one it shares."""
    from mor.rewards.calibration import Calibration

    calibration = Calibration.load(honest / "calibration.json")
    inflated = replace(calibration, deviation=calibration.deviation / factor)
    # written in place, it would change the honest one too
    write_whole(paths.reward_folder(client) / "calibration.json", json.dumps(asdict(inflated), indent=2) + "\n")


def share_anchors(params: Params) -> Params:
    """Settings in which every client shares as many of the pairs that it kept back as the router asks for."""
    from tasks.project.clients import pairs_of

    kept = {client: pairs_of(params, client)[1][: params.router.anchors] for client in params.clients}
    return with_changes(params, {f"clients.{name}.shared_anchors": [pair.id for pair in some] for name, some in kept.items()})
