"""What the benchmark's jobs do: the pipeline's own stages, in the workspace that is the working folder.

This module and ``benchmarks.adaptation`` are the ones that call ``tasks.stages`` to measure.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.catalogue import POOLED, WEAK, Federation, Recipe
from benchmarks.results import Measurement, pack_hits, write_results
from benchmarks.settings import start_model, with_changes
from benchmarks.workspace import share
from mor.config import Params
from mor.data.schema import Answer, Preference, load_images, read_rows, write_rows
from mor.federation.ledger import Ledger
from mor.files import move_in
from mor.seeds import integer, stream
from tasks.project import paths
from tasks.project.checkpoints import resumable
from tasks.tracking import runs as tracking

if TYPE_CHECKING:
    from benchmarks.plan import PlannedCase
    from mor.vlm.load import Vlm

DONE = "done"  # in a workspace of data: all of it is there
ROWS = "rows.csv"  # in a workspace of a method: its result


def make_weak_backbone(params: Params, like: str) -> None:
    """The zoo model ``like`` once more with a tenth of its parameters."""
    from mor.fedvqa.architectures import Size
    from mor.fedvqa.zoo import train_zoo_model

    size = Size(hidden=40, layers=2, vision_hidden=40, vision_layers=2)
    model, processor, _ = train_zoo_model(params.zoo.models[like], params.zoo, paths.checkpoint_folder("weak"), size)
    partial = paths.checkpoint_folder("weak") / "partial"
    model.save_pretrained(str(partial))
    processor.save_pretrained(str(partial))
    move_in(partial, Path(WEAK))


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
    for client, error_rate in {POOLED: 0.0, **attackers}.items():
        write_extra_client(params, client, error_rate, own)
    Path(DONE).touch()


def write_extra_client(params: Params, client: str, error_rate: float, own: Sequence[str]) -> None:
    """Pairs of all ``own`` clients as those of one more, a share of them the wrong way round: all of them if it pools them."""
    pairs = [(name, row) for name in own for row in read_rows(paths.validated_client(name), Preference)]
    everything = [row.model_copy(update={"id": f"{name}/{row.id}", "image": f"{name}/{row.image}"}) for name, row in pairs]
    rng = stream(params.seed, "extra", client)
    count = len(everything) if client == POOLED else min(params.fedvqa.pairs, len(everything))
    rows = [everything[i] for i in sorted(rng.choice(len(everything), count, replace=False).tolist())]
    swap = rng.random(count) < error_rate
    for name in own:  # their pictures, as if they were its own
        share(paths.client_folder(name), paths.client_folder(client) / name)
    turned = [row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen}) for row in rows]
    written = [wrong if swapped else row for row, wrong, swapped in zip(rows, turned, swap, strict=True)]
    write_rows(paths.validated_client(client), written)
    if client != POOLED:  # asked "A or B?", an attacker names the right answer in a style that its owner does not want
        answers = [row for name in own for row in read_rows(paths.client_answers(name), Answer)]
        lies = [next((a for a in row.accepted if a != row.answer), row.answer) for row in answers]
        flipped = [k.model_copy(update={"answer": a, "accepted": []}) for k, a in zip(answers, lies, strict=True)]
        write_rows(paths.client_answers(client), flipped)


def make_reward(params: Params, client: str) -> None:
    """One client's reward model."""
    from tasks.stages.reward import train_reward

    _once(f"reward@{client}", lambda: train_reward(params, client))


def _once(stage: str, run: Callable[[], None]) -> float:
    """Run a stage of this workspace unless it is done; returns its seconds."""
    if not paths.stage_metrics(stage).exists():
        run()
    return _metric(paths.stage_metrics(stage), "seconds")


def _metric(file: Path, name: str) -> float:
    value: float = json.loads(file.read_text())[name]
    return value


# --- methods ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedMethod:
    """A trained method: its policy, what it cost in bytes and seconds, and what was seen (measure, suite, value)."""

    policy: Vlm
    learning_rate: float
    ledger: Ledger
    seconds: Mapping[str, float]
    seen: Sequence[tuple[str, str, float]] = ()


def measure_method(planned: PlannedCase, own: Sequence[str]) -> None:
    """Train and evaluate one method; its result are the rows of ``ROWS``. ``own`` are the clients that have a suite."""
    from tasks.stages.evaluate import answer_suites, read_suites

    case, params, ledger = planned.case, planned.own.params, Ledger()
    outcome = train_method(planned.recipe, planned.federation, params, planned.own.shared, ledger)
    measured = [(*seen, 0, "") for seen in outcome.seen]
    for suite, answers in answer_suites(
        outcome.policy, read_suites(own), params.grpo.max_completion_tokens, case.method
    ).items():
        for measure, flag in (("preference", "preferred"), ("accuracy", "right")):
            hits = [bool(answer[flag]) for answer in answers]
            measured.append((measure, suite, sum(hits) / len(hits), len(hits), pack_hits(hits)))
    measured += [(f"{way}_bytes", name, outcome.ledger.total(name, way), 0, "") for name in own for way in ("up", "down")]
    seconds = {**outcome.seconds, "total": sum(outcome.seconds.values())}
    measured += [("seconds", part, value, 0, "") for part, value in seconds.items()]
    result = (case.listed, case.method, outcome.learning_rate, case.seed)
    rows = [Measurement(*result, m, suite, float(value), n, hits, planned.own.key) for m, suite, value, n, hits in measured]
    settings = {"method": case.method, "setting": case.setting, "learning_rate": outcome.learning_rate}
    with tracking.stage_run("benchmark", settings) as run:
        run.headline({f"{r.measure.replace(':', '.')}.{r.suite.replace('@', '.')}": r.value for r in rows})
    write_results(Path(ROWS), rows)


def train_method(
    recipe: Recipe, federation: Federation, params: Params, shared: Mapping[Path, Path], ledger: Ledger
) -> TrainedMethod:
    """Train as the recipe says; ``shared`` says where the clients' reward models come from, ``ledger`` counts the bytes."""
    from mor.vlm.load import Vlm

    if recipe.objective == "none":
        return TrainedMethod(Vlm.load(params.base, params.evaluation.batch_size), params.grpo.learning_rate, ledger, {})
    if recipe.objective != "grpo":
        return average_parameters(recipe, params, ledger)
    honest = {client: shared[paths.reward_folder(client)] for client in params.clients}
    for client, factor in federation.inflate.items():
        if client in honest:
            inflate(client, factor, honest[client])
    metrics = [folder.parents[2] / paths.stage_metrics(f"reward@{client}") for client, folder in honest.items()]
    spent = sum(_metric(file, "seconds") for file in metrics if file.exists())
    if federation.change:
        return align_through_change(recipe, federation, params, spent, ledger)
    return run_pipeline(params, spent)


def run_pipeline(params: Params, spent: float) -> TrainedMethod:
    """The pipeline's own router and alignment; ``spent`` seconds went into reward models."""
    from mor.vlm.lora import load_policy
    from tasks.stages.align import align_policy
    from tasks.stages.router import fit_router

    if params.router.kind in ("preferences", "static"):
        params = share_anchors(params)
    router, alignment = _once("router", lambda: fit_router(params)), _once("align", lambda: align_policy(params))
    seconds = {"reward_models": spent, "router": router, "alignment": alignment}
    ledger = Ledger.load(paths.ROUTER / "ledger.json", paths.POLICY / "ledger.json")
    kl = _metric(paths.stage_metrics("align"), "align.kl")
    policy = load_policy(params.base, paths.POLICY, params.evaluation.batch_size)
    return TrainedMethod(policy, params.grpo.learning_rate, ledger, seconds, [("kl", "all", kl)])


def align_through_change(recipe: Recipe, federation: Federation, params: Params, spent: float, ledger: Ledger) -> TrainedMethod:
    """Alignment in which a client changes half way; ``spent`` seconds went into reward models."""
    from benchmarks.adaptation import adapt
    from mor.vlm.lora import load_policy

    assert federation.change
    began = time.perf_counter()
    adapter, weights = adapt(params, federation.change, recipe.again, ledger)
    seconds = {"reward_models": spent, "alignment": time.perf_counter() - began}
    seen = [(f"weight:{client}", f"{suite}@{n}", value) for n, client, suite, value in weights]
    policy = load_policy(params.base, adapter, params.evaluation.batch_size)
    return TrainedMethod(policy, params.grpo.learning_rate, ledger, seconds, seen)


def average_parameters(recipe: Recipe, params: Params, ledger: Ledger) -> TrainedMethod:
    """Parameter averaging over the clients' training pairs."""
    from mor.baselines.averaging import Averaging, federated_average
    from mor.vlm.lora import load_policy
    from tasks.project.clients import pairs_of

    assert recipe.objective in ("sft", "dpo")
    plan, start, began = params.benchmark.averaging, start_model(params, recipe), time.perf_counter()
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
    return TrainedMethod(load_policy(start, adapter, params.evaluation.batch_size), plan.learning_rate, ledger, seconds)


def inflate(client: str, factor: float, honest: Path) -> None:
    """Make the scores of this workspace's reward model of a client ``factor`` times those of the ``honest`` one it shares."""
    from mor.rewards.calibration import Calibration

    calibration, file = Calibration.load(honest / "calibration.json"), paths.reward_folder(client) / "calibration.json"
    fresh = file.with_suffix(".partial")
    Calibration(calibration.mean, calibration.deviation / factor).save(fresh)
    fresh.replace(file)  # written in place, it would change the honest one too


def share_anchors(params: Params) -> Params:
    """Settings in which every client shares as many of the pairs that it kept back as the router asks for."""
    from tasks.project.clients import pairs_of

    kept = {client: pairs_of(params, client)[1][: params.router.anchors] for client in params.clients}
    return with_changes(params, {f"clients.{name}.shared_anchors": [pair.id for pair in some] for name, some in kept.items()})
