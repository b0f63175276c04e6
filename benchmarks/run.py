"""Run the methods of the benchmark: the pipeline's own stages, in workspaces of their own, all cores kept busy.

A workspace is a project folder below ``.benchmark``: a ``params.yaml`` with the changes of a method, and links to what it
shares with others. Data (``data``) and reward models (``rewards``) are made once for all that need the same. Every
unit of work can be killed and goes on from its last checkpoint; a finished method is a row of
``benchmarks/results/benchmark.csv`` and is not repeated while its settings stay the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from graphlib import TopologicalSorter
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import yaml
from rich.console import Console

from benchmarks.catalogue import POOLED, RATE_OF, WEAK, Method, Setting, methods, settings
from benchmarks.report import Change, write_comparison
from benchmarks.results import DEFAULT, SEARCH, Results, Row, pack_hits, read_results, write_results
from benchmarks.tables import console_tables
from mor.config import Params, UserError, load_params, parse_params
from mor.data.schema import Answer, Preference, read_rows, write_rows
from mor.files import move_in
from mor.routing.router import LEARNED
from mor.seeds import integer, stream
from tasks.project import paths
from tasks.project.checkpoints import resumable
from tasks.tracking import runs as tracking
from tasks.tracking import store

WORK = Path(".benchmark")
RESULTS = Path("benchmarks") / "results" / "benchmark.csv"
EXPERIMENT = "mor-benchmark"
WIDTH = 150  # columns of the widest table; a narrower terminal wraps its lines instead of hiding figures


@dataclass(frozen=True)
class Cell:
    """One method on one setting with one seed; ``factor`` multiplies its learning rate (the search tries several)."""

    setting: str
    seed: int
    method: str
    factor: float = 1.0
    search: bool = False

    def __str__(self) -> str:
        return f"{self.setting} seed {self.seed} {self.method}" + (f" x{self.factor:g}" if self.search else "")


@dataclass(frozen=True)
class Place:
    """A workspace: its folder, its settings, what it links (place inside -> target), and a key of all that it depends on."""

    folder: Path
    params: Params
    key: str
    links: Mapping[Path, Path] = field(default_factory=dict)

    def enter(self, home: Path) -> None:
        """Make the workspace, empty where its key differs, and this process's project, with its output in ``log.txt``."""
        os.chdir(home)
        mark = self.folder / "key"
        if not mark.exists() or mark.read_text() != self.key:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
        (self.folder / paths.PARAMS).write_text(yaml.safe_dump(self.params.model_dump(exclude_none=True), sort_keys=False))
        mark.write_text(self.key)
        for place, target in self.links.items():
            (self.folder / place).parent.mkdir(parents=True, exist_ok=True)
            if not (self.folder / place).is_symlink():
                (self.folder / place).symlink_to(target.resolve())
        os.chdir(self.folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(log, number)
        os.close(log)
        run = Path("mlflow_run")  # the parent of all runs of this workspace
        if not run.exists():
            name = self.folder.relative_to(WORK).as_posix()
            run.write_text(tracking.open_parent(f"benchmark {name}", self.params, name))
        os.environ[tracking.PARENT_VARIABLE] = run.read_text()

    @staticmethod
    def leave() -> None:
        """End the workspace's MLflow run."""
        tracking.close_parent(os.environ[tracking.PARENT_VARIABLE], "FINISHED")


def changed(params: Params, changes: Mapping[str, Any]) -> Params:
    """``params`` with other values for dotted names, validated again."""
    values = params.model_dump(exclude_none=True)
    for name, value in changes.items():
        *sections, last = name.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[last] = value
    return parse_params(values, "benchmark")


def key_of(*parts: Any) -> str:
    """What a result depends on, as 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=vars).encode()).hexdigest()[:12]


def federation(params: Params, setting: Setting, seed: int) -> Params:
    """Settings of a federation: its clients with their backbones."""
    clients = {
        name: {"backbone": setting.backbones.get(name, setting.backbone or client.backbone)}
        for name, client in params.clients.items()
    } | {name: {"backbone": params.base} for name in setting.extra}
    return changed(params, {**setting.changes, "seed": seed, "clients": clients})


def own_settings(shared: Params, method: Method, factor: float) -> Params:
    """Settings of one method's run."""
    changes = dict(method.changes)
    if method.clients is not None:
        clients = shared.model_dump(exclude_none=True)["clients"]
        changes["clients"] = {name: clients.get(name, {"backbone": shared.base}) for name in method.clients}
    averaging = method.objective in ("sft", "dpo")
    name = "benchmark.averaging.learning_rate" if averaging else "grpo.learning_rate"
    rate = shared.benchmark.averaging.learning_rate if averaging else shared.grpo.learning_rate
    return changed(shared, changes | {name: rate * factor})


@cache
def weights(model: str) -> str:
    """What tells a model folder's weights from others under the same name; of nothing for a hub id, which names its own.

    Committed rows of the benchmark were keyed with it: the first 8 digits of SHA-256 over names and bytes of the files.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(model).rglob("*") if p.suffix in {".json", ".safetensors"}):
        digest.update(path.relative_to(model).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def data_place(shared: Params, setting: Setting, own: list[str]) -> Place:
    """Where a federation's data lies; clients that only attack share it with the others."""
    parts = {"benchmark": shared.fedvqa.model_dump(), "thin": setting.thin, "clients": own}
    key = key_of(shared.seed, parts)
    return Place(WORK / "data" / f"{shared.seed}-{key}", shared, key)


def reward_place(shared: Params, data: Place, client: str) -> Place:
    """Where the reward model of a client lies; ``pooled`` learns all clients' pairs, in as many steps as they together."""
    backbone = shared.base if client == POOLED else shared.clients[client].backbone
    changes: dict[str, Any] = {"clients": {client: {"backbone": backbone}}}
    if client == POOLED:
        changes["rewards.steps"] = shared.rewards.steps * len(shared.clients)
    params = changed(shared, changes)
    key = key_of(data.key, backbone, weights(backbone), params.rewards.model_dump())
    links = {paths.ZOO: paths.ZOO, Path(WEAK): WORK / "weak" / WEAK, paths.DATA: data.folder / paths.DATA}
    return Place(WORK / "rewards" / f"{client}-{shared.seed}-{key}", params, key, links)


def relevant(params: Params, method: Method) -> dict[str, Any]:
    """The settings that a method's result depends on, data and reward models apart."""
    values = params.model_dump()
    router, grpo = values["router"], values["grpo"]
    start = smallest(params) if method.smallest else params.base
    found = {"start": start, "weights": weights(start), "tokens": grpo["max_completion_tokens"]}
    if method.objective == "grpo":
        learned = params.router.kind in LEARNED
        found["router"] = router if learned else {name: router[name] for name in ("kind", "top_k", "least_weight")}
        if params.router.kind == "means":
            found["boundary"] = {name: values["boundary"][name] for name in ("epsilon", "delta", "prompts")}
        found["grpo"] = {name: value for name, value in grpo.items() if name != "coverage"}  # no client is absent here
    elif method.objective != "none":
        backbones = {name: client.backbone for name, client in params.clients.items()}
        found |= {"averaging": values["benchmark"]["averaging"], "lora": grpo["lora"], "clients": backbones}
        found["beta"] = params.rewards.beta
    return found


# --- units of work ----------------------------------------------------------------------------------------------------


def _once(stage: str, run: Callable[[], None]) -> float:
    """Run a stage of this workspace unless it is done; returns its seconds."""
    done = paths.stage_metrics(stage)
    if not done.exists():
        run()
    seconds: float = json.loads(done.read_text())["seconds"]
    return seconds


def make_weak_backbone(home: Path, place: Place, like: str) -> None:
    """The zoo model ``like`` once more with a tenth of its parameters."""
    from mor.fedvqa.architectures import Size
    from mor.fedvqa.zoo import train_zoo_model

    place.enter(home)
    zoo = place.params.zoo
    described = zoo.models[like]
    model, processor, _ = train_zoo_model(
        **described.model_dump(), images=zoo.images, batch_size=zoo.batch_size, learning_rate=zoo.learning_rate,
        caption_share=zoo.caption_share, seed=zoo.seed, checkpoints=paths.checkpoint_folder("weak"),
        size=Size(hidden=40, layers=2, vision_hidden=40, vision_layers=2),
    )  # fmt: skip
    partial = paths.checkpoint_folder("weak") / "partial"
    model.save_pretrained(str(partial))
    processor.save_pretrained(str(partial))
    move_in(partial, Path(WEAK))
    place.leave()


def make_data(home: Path, place: Place, thin: Mapping[str, float], attackers: Mapping[str, float], own: list[str]) -> None:
    """Data and validation of a federation, then what the setting takes from clients, all pairs pooled, and the attackers'."""
    from tasks.stages.fedvqa import write_fedvqa
    from tasks.stages.validate import validate_data

    place.enter(home)
    _once("fedvqa", lambda: write_fedvqa(place.params.seed, place.params.fedvqa))
    validate_data(own, place.params.validation)
    for client, share in thin.items():
        rows = read_rows(paths.validated_client(client), Preference)
        write_rows(paths.validated_client(client), rows[: round(share * len(rows))])
    everything = [
        row.model_copy(update={"id": f"{client}/{row.id}", "image": f"{client}/{row.image}"})
        for client in own
        for row in read_rows(paths.validated_client(client), Preference)
    ]
    for client, error_rate in {POOLED: 0.0, **attackers}.items():
        rng = stream(place.params.seed, "extra", client)
        count = len(everything) if client == POOLED else min(place.params.fedvqa.pairs, len(everything))
        rows = [everything[i] for i in sorted(rng.choice(len(everything), count, replace=False).tolist())]
        swap = rng.random(count) < error_rate
        paths.client_folder(client).mkdir(exist_ok=True)
        for name in own:  # their pictures, as if they were its own
            link = paths.client_folder(client) / name
            if not link.is_symlink():
                link.symlink_to(Path("..") / name)
        write_rows(
            paths.validated_client(client),
            [
                row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen}) if swapped else row
                for row, swapped in zip(rows, swap, strict=True)
            ],
        )
        if client != POOLED:  # asked "A or B?", an attacker names the right answer in a style that its owner does not want
            keys = [row for name in own for row in read_rows(paths.client_answers(name), Answer)]
            lies = [next((a for a in key.accepted if a != key.answer), key.answer) for key in keys]
            flipped = [k.model_copy(update={"answer": a, "accepted": []}) for k, a in zip(keys, lies, strict=True)]
            write_rows(paths.client_answers(client), flipped)
    place.leave()
    Path("done").touch()


def make_reward(home: Path, place: Place, client: str) -> None:
    """One client's reward model."""
    from tasks.stages.reward import train_reward

    place.enter(home)
    _once(f"reward@{client}", lambda: train_reward(place.params, client))
    place.leave()


def inflate(client: str, factor: float) -> None:
    """Replace the link to a client's reward model by a copy whose scores are ``factor`` times as large."""
    from mor.rewards.calibration import Calibration

    folder = paths.reward_folder(client)
    if folder.is_symlink():
        honest = folder.resolve()
        folder.unlink()
        shutil.copytree(honest, folder)
        calibration = Calibration.load(honest / "calibration.json")
        Calibration(calibration.mean, calibration.deviation / factor).save(folder / "calibration.json")


def run_method(home: Path, place: Place, cell: Cell, method: Method, setting: Setting, own: list[str]) -> list[Row]:
    """Train and evaluate one method; returns its rows. ``own`` are the clients that have a suite."""
    from benchmarks.adaptation import adapt
    from mor.federation.ledger import Ledger
    from mor.vlm.load import Vlm
    from mor.vlm.lora import load_policy
    from tasks.stages.align import align_policy
    from tasks.stages.evaluate import answer_suites, read_suites
    from tasks.stages.router import fit_router

    place.enter(home)
    params = place.params
    seconds, start, ledger, rate = {}, params.base, Ledger(), params.grpo.learning_rate
    rows: list[Row] = []

    def row(measure: str, suite: str, value: float, n: int = 0, hits: str = "") -> Row:
        name = SEARCH if cell.search else cell.setting
        return Row(name, cell.method, rate, cell.seed, measure, suite, float(value), n, hits, place.key)

    if method.objective == "none":
        policy = Vlm.load(params.base, params.evaluation.batch_size)
    elif method.objective == "grpo":
        for client, factor in setting.inflate.items():
            if client in params.clients:
                inflate(client, factor)
        recorded = [paths.reward_folder(c).resolve().parents[2] / paths.stage_metrics(f"reward@{c}") for c in params.clients]
        seconds["reward_models"] = sum(json.loads(path.read_text())["seconds"] for path in recorded if path.exists())
        if setting.change:
            began = time.perf_counter()
            adapter, weights = adapt(params, setting.change, method.again, ledger)
            seconds["alignment"] = time.perf_counter() - began
            rows += [row(f"weight:{client}", f"{suite}@{n}", value) for n, client, suite, value in weights]
        else:
            if params.router.kind in ("preferences", "static"):
                share_anchors(params)
            seconds["router"] = _once("router", lambda: fit_router(params))
            seconds["alignment"] = _once("align", lambda: align_policy(params))
            adapter, ledger = paths.POLICY, Ledger.load(paths.ROUTER / "ledger.json", paths.POLICY / "ledger.json")
            rows.append(row("kl", "all", json.loads(paths.stage_metrics("align").read_text())["align.kl"]))
        policy = load_policy(params.base, adapter, params.evaluation.batch_size)
    else:
        rate = params.benchmark.averaging.learning_rate
        start = smallest(params) if method.smallest else params.base
        began = time.perf_counter()
        adapter = average(params, method, start, rate, ledger)
        seconds["alignment"] = time.perf_counter() - began
        policy = load_policy(start, adapter, params.evaluation.batch_size)
    for suite, answers in answer_suites(policy, read_suites(own), params, cell.method).items():
        for measure, flag in (("preference", "preferred"), ("accuracy", "right")):
            hits = [bool(answer[flag]) for answer in answers]
            rows.append(row(measure, suite, sum(hits) / len(hits), len(hits), pack_hits(hits)))
    rows += [row(f"{way}_bytes", name, ledger.total(name, way)) for name in own for way in ("up", "down")]
    rows += [row("seconds", part, value) for part, value in (seconds | {"total": sum(seconds.values())}).items()]
    with tracking.stage_run("benchmark", {"method": cell.method, "setting": cell.setting, "learning_rate": rate}) as run:
        run.headline({f"{r.measure.replace(':', '.')}.{r.suite.replace('@', '.')}": r.value for r in rows})
    place.leave()
    return rows


def share_anchors(params: Params) -> None:
    """Let every client of this workspace share as many of the pairs that it kept back as the router asks for."""
    from tasks.project.clients import pairs_of

    shared = {
        f"clients.{client}.shared_anchors": [pair.id for pair in pairs_of(params, client)[1][: params.router.anchors]]
        for client in params.clients
    }
    values = changed(params, shared).model_dump(exclude_none=True)
    paths.PARAMS.write_text(yaml.safe_dump(values, sort_keys=False))


def smallest(params: Params) -> str:
    """The clients' backbone with the fewest bytes of weights."""
    sizes = {c.backbone: sum(p.stat().st_size for p in Path(c.backbone).glob("*.safetensors")) for c in params.clients.values()}
    return min(sizes, key=sizes.__getitem__)


def average(params: Params, method: Method, start: str, rate: float, ledger: Any) -> Path:
    """Parameter averaging over the clients' training pairs; returns the averaged adapter's folder."""
    from mor.baselines.averaging import Averaging, federated_average
    from mor.data.schema import load_images
    from tasks.project.clients import pairs_of

    assert method.objective in ("sft", "dpo")
    plan = params.benchmark.averaging
    private = {}
    for client in params.clients:
        pairs, _ = pairs_of(params, client)
        private[client] = (pairs, load_images(paths.client_folder(client), pairs))
    described = Averaging(
        objective=method.objective, rounds=plan.rounds, local_steps=plan.local_steps, batch_size=plan.batch_size,
        learning_rate=rate, beta=params.rewards.beta,
        proximal=plan.proximal if method.proximal else 0.0, lora=params.grpo.lora,
    )  # fmt: skip
    inputs = [paths.validated_client(client) for client in params.clients]
    folder = resumable("averaging", {"seed": params.seed, "start": start, "averaging": vars(described)}, inputs)
    return federated_average(start, private, described, seed=integer(params.seed, "averaging"), ledger=ledger, folder=folder)


# --- the plan ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """Work for one process: ``needs`` names what must be done before."""

    name: str
    needs: tuple[str, ...]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    cell: Cell | None = None


def factors(params: Params, rows: Iterable[Row]) -> dict[str, float]:
    """Each method's best factor in the learning-rate search, by the mean preference over the clients.

    A method that was not searched has that of the one named in ``RATE_OF``, or none, which stands for 1.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row.setting == SEARCH and row.measure == "preference" and row.suite in params.clients:
            found.setdefault(row.method, {}).setdefault(row.learning_rate, []).append(row.value)
    rates = {True: params.benchmark.averaging.learning_rate, False: params.grpo.learning_rate}
    best = {name: max(tried, key=lambda rate, tried=tried: sum(tried[rate])) for name, tried in found.items()}  # type: ignore[misc]
    searched = {name: rate / rates[name.startswith("fed")] for name, rate in best.items()}
    return {name: searched[like] for name, like in RATE_OF.items() if like in searched} | searched


@dataclass(frozen=True)
class Planned:
    """A cell with all that it needs: the places of its data, its reward models and its own, and the key of its result."""

    cell: Cell
    setting: Setting
    method: Method
    data: Place
    rewards: Mapping[str, Place]
    own: Place

    @staticmethod
    def of(params: Params, cell: Cell) -> Planned:
        """Raises ``KeyError`` for a setting or method that these clients do not have."""
        names = list(params.clients)
        setting, method = settings(params.clients, params.base)[cell.setting], methods(names)[cell.method]
        shared = federation(params, setting, cell.seed)
        own = own_settings(shared, method, cell.factor)
        data = data_place(shared, setting, names)
        rewards = {judge: reward_place(shared, data, judge) for judge in own.clients} if method.objective == "grpo" else {}
        key = key_of(data.key, [place.key for place in rewards.values()], relevant(own, method), setting, method)
        links = {paths.ZOO: paths.ZOO, Path(WEAK): WORK / "weak" / WEAK, paths.DATA: data.folder / paths.DATA}
        links |= {paths.reward_folder(c): place.folder / paths.reward_folder(c) for c, place in rewards.items()}
        folder = WORK / f"{SEARCH if cell.search else cell.setting}-{cell.seed}" / str(cell).split()[-1]
        if cell.search:
            folder = folder.with_name(f"{cell.method}-{folder.name}")
        return Planned(cell, setting, method, data, rewards, Place(folder, own, key, links))


def plan(params: Params, cells: Iterable[Cell], rows: list[Row]) -> list[Unit]:
    """The units of work that ``cells`` still need, in order."""
    names, home = list(params.clients), Path.cwd()
    attackers = {client: rate for s in settings(params.clients, params.base).values() for client, rate in s.extra.items()}
    present = {(row.setting, row.method, row.seed, row.key) for row in rows}
    units: dict[str, Unit] = {}

    def need(name: str, needs: Iterable[str], function: Callable[..., Any], *arguments: Any, done: Path) -> list[str]:
        if not done.exists():
            units.setdefault(name, Unit(name, tuple(n for n in needs if n in units), function, (home, *arguments)))
        return [name]

    for cell in cells:
        planned = Planned.of(params, cell)
        if (SEARCH if cell.search else cell.setting, cell.method, cell.seed, planned.own.key) in present:
            continue
        needs: list[str] = []
        if WEAK in planned.setting.backbones.values() and planned.method.objective != "none":
            like = next(Path(params.clients[c].backbone).name for c, b in planned.setting.backbones.items() if b == WEAK)
            weak = Place(WORK / "weak", params, key_of(params.zoo.model_dump(), like))
            needs += need("weak backbone", (), make_weak_backbone, weak, like, done=weak.folder / WEAK)
        made, title = planned.data.folder / "done", f"data of {planned.data.folder.name}"
        needs += need(title, (), make_data, planned.data, planned.setting.thin, attackers, names, done=made)
        before = tuple(needs)
        for judge, place in planned.rewards.items():
            title, finished = f"reward model {place.folder.name}", place.folder / paths.reward_folder(judge)
            needs += need(title, before, make_reward, place, judge, done=finished)
        ready = tuple(n for n in needs if n in units)
        units[str(cell)] = Unit(
            str(cell), ready, run_method, (home, planned.own, cell, planned.method, planned.setting, names), cell
        )
    return list(units.values())


def up_to_date(params: Params, rows: list[Row]) -> list[Row]:
    """The rows that were measured with these settings, and with each method's best learning rate."""

    def keep(cells: set[Cell], among: list[Row]) -> list[Row]:
        keys = set()
        for cell in cells:
            with suppress(KeyError):  # of a client, say, that is no longer there
                keys.add(Planned.of(params, cell).own.key)
        return [row for row in among if row.key in keys]

    searched, others = ([row for row in rows if (row.setting == SEARCH) == search] for search in (True, False))
    tried = params.benchmark.search_factors
    searched = keep({Cell(DEFAULT, row.seed, row.method, f, True) for row in searched for f in tried}, searched)
    best = factors(params, searched)
    return keep({Cell(row.setting, row.seed, row.method, best.get(row.method, 1.0)) for row in others}, others) + searched


def _identity(row: Row) -> tuple[Any, ...]:
    """Which result a row belongs to; a later one takes its place."""
    return row.setting, row.method, row.seed, row.learning_rate if row.setting == SEARCH else None


def _follow_parent() -> None:
    """End this process with its parent, so that nothing goes on writing where the next call begins."""

    def wait_and_end() -> None:
        if parent := parent_process():
            parent.join()
            os._exit(1)

    Thread(target=wait_and_end, daemon=True).start()


def execute(units: list[Unit], jobs: int, done: Callable[[Unit, Any, int], None]) -> list[str]:
    """Run units as soon as what they need is there, ``jobs`` at a time, the first in the list first; returns the failures.

    ``done(unit, result, left)`` is called after each.
    """
    order, by_name = [unit.name for unit in units], {unit.name: unit for unit in units}
    sorter = TopologicalSorter({unit.name: unit.needs for unit in units})
    sorter.prepare()
    ready: list[str] = []
    running: dict[Future[Any], str] = {}
    failures: list[str] = []
    left = len(units)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_follow_parent) as pool:
        while True:
            ready = sorted([*ready, *sorter.get_ready()], key=order.index)
            while ready and len(running) < jobs:
                unit = by_name[ready.pop(0)]
                running[pool.submit(unit.function, *unit.arguments)] = unit.name
            if not running:
                return failures
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                if error := future.exception():
                    failures.append(f"{name}: {type(error).__name__}: {error}")
                    continue
                left -= 1
                sorter.done(name)
                done(by_name[name], future.result(), left)


def compare(cells: list[Cell], jobs: int) -> list[Row]:
    """Bring the results of ``cells`` up to date; returns all results that are up to date."""
    console = Console(stderr=True)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    params = changed(load_params(paths.PARAMS), {"threads": threads})
    if strangers := sorted(params.clients.keys() - params.fedvqa.styles.keys()):
        raise UserError(
            f"{paths.PARAMS}: the benchmark makes the data of {', '.join(params.fedvqa.styles)} (fedvqa.styles), "
            f"and none for {', '.join(strangers)}: take them out of clients for this run"
        )
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd() / 'mlflow.db'}")
    os.environ["MLFLOW_EXPERIMENT_NAME"] = EXPERIMENT
    rows = read_results(RESULTS) if RESULTS.exists() else []
    best = factors(params, up_to_date(params, rows))
    cells = [cell if cell.search else replace(cell, factor=best.get(cell.method, 1.0)) for cell in cells]
    units = plan(params, cells, rows)
    wanted = sum(unit.cell is not None for unit in units)
    there = f"{len(cells) - wanted} of {len(cells)} results are there"
    console.print(f"{there}; {len(units)} units of work to do, {jobs} at a time")
    if units:
        store.experiment()
    began = time.perf_counter()

    def done(unit: Unit, result: Any, left: int) -> None:
        nonlocal rows
        said = ""
        if unit.cell:
            fresh: list[Row] = result
            rows = [row for row in rows if _identity(row) != _identity(fresh[0])] + fresh
            write_results(RESULTS, rows)
            own = [row.value for row in fresh if row.measure == "preference" and row.suite in params.clients]
            said = f": preference {sum(own) / len(own):.3f}, worst client {min(own):.3f}"
        console.print(f"[dim]{(time.perf_counter() - began) / 60:6.1f} min[/] {unit.name}{said} [dim]({left} left)[/]")

    failures = execute(units, jobs, done)
    for failure in failures:
        console.print(failure, style="red", markup=False)
    if failures:
        raise UserError(f"{len(failures)} units failed; log.txt in their folders below {WORK} says why. Run again.")
    shown = up_to_date(params, rows)
    if stale := {_identity(row) for row in rows} - {_identity(row) for row in shown}:
        console.print(f"{len(stale)} results in {RESULTS} were measured with other settings; the report leaves them out")
    return shown


def report_comparison(rows: list[Row]) -> tuple[Results, list[str]]:
    """Figures, page and the tables on the terminal; returns the results and the names of the weak clients."""
    params = load_params(paths.PARAMS)
    known = settings(params.clients, params.base)
    weak = [client for client, backbone in known["weak"].backbones.items() if backbone == WEAK]
    changes = {
        name: Change(setting.change.client, setting.change.client, setting.change.round)
        for name, setting in known.items()
        if setting.change
    }
    results = write_comparison(rows, paths.BENCHMARK_PLOTS, paths.BENCHMARK_REPORT, weak=weak, changes=changes)
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(console_tables(results, weak))
    console.print(f"Results: {RESULTS}; report: {paths.BENCHMARK_REPORT}; runs: experiment {EXPERIMENT} in `mlflow ui`")
    return results, weak
