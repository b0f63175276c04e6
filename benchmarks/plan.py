"""The plan: which results are asked for, which of them are there, and the jobs that the others need.

Data (``data``) and reward models (``rewards``) are made once for all that need the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.catalogue import DEFAULT, POOLED, RATE_OF, SEARCH, WEAK, Federation, Recipe, federations, find_method, recipes
from benchmarks.keys import data_key, key_of, result_key, reward_key
from benchmarks.processes import Job
from benchmarks.results import Measurement
from benchmarks.settings import federation_params, learning_rate, method_params, with_changes
from benchmarks.workspace import Workspace, workspace_folder
from mor.config import Params
from tasks.project import paths


@dataclass(frozen=True)
class Case:
    """One method in one setting with one seed; ``factor`` multiplies its learning rate (the search tries several)."""

    setting: str
    seed: int
    method: str
    factor: float = 1.0
    search: bool = False

    def __str__(self) -> str:
        return f"{self.setting} seed {self.seed} {self.method}" + (f" x{self.factor:g}" if self.search else "")

    @property
    def listed(self) -> str:
        """The setting that its rows bear."""
        return SEARCH if self.search else self.setting

    @property
    def folder(self) -> Path:
        """Its workspace."""
        tried = f"-x{self.factor:g}" if self.search else ""
        return workspace_folder(f"{self.listed}-{self.seed}/{self.method}{tried}")


@dataclass(frozen=True)
class PlannedCase:
    """A case with all that it needs: the workspaces of its data, its reward models (by client) and its own.

    ``own.key`` is the key of its result.
    """

    case: Case
    federation: Federation
    recipe: Recipe
    data: Workspace
    rewards: Mapping[str, Workspace]
    own: Workspace


def plan_case(params: Params, case: Case) -> PlannedCase:
    """Where a case and what it needs are made; raises ``KeyError`` for a setting or method that these clients do not have."""
    names = list(params.clients)
    federation, recipe = federations(names, params.base)[case.setting], recipes(names)[case.method]
    shared = federation_params(params, federation, case.seed)
    own = method_params(shared, recipe, case.factor)
    key = data_key(case.seed, shared.fedvqa, federation.thin, names)
    data = Workspace(workspace_folder(f"data/{case.seed}-{key}"), shared, key)
    judges = own.clients if recipe.objective == "grpo" else ()
    rewards = {client: reward_workspace(data, client) for client in judges}
    files = _shared(data, [paths.PUBLIC, paths.EVAL, *map(paths.client_folder, own.clients)])
    files |= {paths.reward_folder(c): made.folder / paths.reward_folder(c) for c, made in rewards.items()}
    key = result_key(data.key, [made.key for made in rewards.values()], own, federation, recipe)
    return PlannedCase(case, federation, recipe, data, rewards, Workspace(case.folder, own, key, files))


def reward_workspace(data: Workspace, client: str) -> Workspace:
    """Where the reward model of a client is made; ``pooled`` learns all clients' pairs, in as many steps as they together."""
    shared = data.params
    backbone = shared.base if client == POOLED else shared.clients[client].backbone
    changes: dict[str, Any] = {"clients": {client: {"backbone": backbone}}}
    if client == POOLED:
        changes["rewards.steps"] = shared.rewards.steps * len(shared.clients)
    params = with_changes(shared, changes)
    key = reward_key(data.key, backbone, params.rewards)
    folder = workspace_folder(f"rewards/{client}-{shared.seed}-{key}")
    return Workspace(folder, params, key, _shared(data, [paths.client_folder(client)]))


def _shared(data: Workspace, folders: Iterable[Path]) -> dict[Path, Path]:
    """Models, validated rows and ``folders`` of the data, by their paths in the workspace that shares them."""
    models = {paths.ZOO: paths.ZOO.absolute(), Path(WEAK): workspace_folder("weak") / WEAK}
    return models | {folder: data.folder / folder for folder in (paths.VALIDATED, *folders)}


class JobPlan:
    """The jobs that cases need, in order, each once."""

    def __init__(self, params: Params) -> None:
        self.params = params
        known = federations(params.clients, params.base).values()
        self.attackers = {client: rate for federation in known for client, rate in federation.extra.items()}
        self.jobs: dict[str, Job] = {}
        self.cases: dict[str, Case] = {}  # by the name of the job that measures it

    def add(self, planned: PlannedCase) -> None:
        """The jobs of one case: weak backbone, data, reward models, and the method itself."""
        own, data = list(self.params.clients), planned.data
        needs = self._weak_backbone(planned)
        arguments = (data.params, planned.federation.thin, self.attackers, own)
        needs += self._need(Job(f"data of {data.folder.name}", (), data, jobs.make_data, arguments), jobs.DONE)
        before = tuple(needs)
        for client, made in planned.rewards.items():
            job = Job(f"reward model {made.folder.name}", before, made, jobs.make_reward, (made.params, client))
            needs += self._need(job, paths.reward_folder(client))
        name = str(planned.case)
        self.jobs[name] = Job(name, tuple(needs), planned.own, jobs.measure_method, (planned, own))
        self.cases[name] = planned.case

    def _weak_backbone(self, planned: PlannedCase) -> list[str]:
        weak = [client for client, backbone in planned.federation.backbones.items() if backbone == WEAK]
        if not weak or planned.recipe.objective == "none":
            return []
        zoo, like = self.params.zoo, Path(self.params.clients[weak[0]].backbone).name
        made = Workspace(workspace_folder("weak"), self.params, key_of(zoo.model_dump(), like))
        return self._need(Job("weak backbone", (), made, jobs.make_weak_backbone, (zoo, like)), WEAK)

    def _need(self, job: Job, made: Path | str) -> list[str]:
        """The job's name, for those who wait for it; none where what it makes in its workspace is there."""
        if (job.workspace.folder / made).exists():
            return []
        self.jobs.setdefault(job.name, job)
        return [job.name]


def plan_cases(params: Params, cases: Iterable[Case], rows: Iterable[Measurement]) -> JobPlan:
    """The jobs for those of ``cases`` whose results are not among ``rows``, in order."""
    present = {(row.setting, row.method, row.seed, row.key) for row in rows}
    plan = JobPlan(params)
    for case in cases:
        planned = plan_case(params, case)
        if (case.listed, case.method, case.seed, planned.own.key) not in present:
            plan.add(planned)
    return plan


def best_factors(params: Params, rows: Iterable[Measurement]) -> dict[str, float]:
    """Each method's best factor in the learning-rate search, by the mean preference over the clients.

    A method that was not searched has that of the one named in ``RATE_OF``, or none, which stands for 1.
    """
    sums: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        if row.setting == SEARCH and row.measure == "preference" and row.suite in params.clients:
            sums[row.method][row.learning_rate] += row.value
    known = recipes(params.clients)
    searched = {name: max(tried, key=tried.__getitem__) / learning_rate(params, known[name])[1] for name, tried in sums.items()}
    return {name: searched[like] for name, like in RATE_OF.items() if like in searched} | searched


def unsearched(methods: Iterable[str], best: Mapping[str, float]) -> dict[str, str]:
    """Those of ``methods`` that train with factor 1 since ``best`` has none for them, and the method to search for each."""
    known = {method: find_method(method).recipe for method in methods if method not in best}
    return {method: RATE_OF.get(method, method) for method, recipe in known.items() if recipe and recipe.objective != "none"}


def up_to_date(params: Params, rows: list[Measurement]) -> list[Measurement]:
    """The rows that were measured with these settings, and with each method's best learning rate."""

    def keep(cases: set[Case], among: list[Measurement]) -> list[Measurement]:
        keys = set()
        for case in cases:
            with suppress(KeyError):  # of a client, say, that is no longer there
                keys.add(plan_case(params, case).own.key)
        return [row for row in among if row.key in keys]

    searched, others = ([row for row in rows if (row.setting == SEARCH) == search] for search in (True, False))
    tried = params.benchmark.search_factors
    searched = keep({Case(DEFAULT, row.seed, row.method, f, True) for row in searched for f in tried}, searched)
    best = best_factors(params, searched)
    return keep({Case(row.setting, row.seed, row.method, best.get(row.method, 1.0)) for row in others}, others) + searched
