"""Settings: ``params.yaml`` as frozen, validated models, one section a stage.

``params.yaml`` names every setting unless its absence has a meaning of its own. The sections that the library can be used with
alone (``boundary``, ``router``, ``grpo``) have the same values as defaults here.
Loads without torch, so that a wrong key is reported within a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mor.addresses import Address, ClientUrl, ModelSource
from mor.errors import ConfigError

RouterKind = Literal["means", "preferences", "online", "uniform", "random", "static", "oracle"]
RewardKind = Literal["implicit", "head"]
Architecture = Literal["llava", "idefics3", "gemma3"]
Style = Literal["terse", "field", "sentence"]
ImageFormat = Literal["PNG", "JPEG", "WEBP", "BMP"]  # Pillow decodes these itself, without other programs or files
SUMMARIES = ("mean", "worst")  # of the clients' own suites
HELD_OUT = "held_out"  # the suite of the category that no client trained on
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


MOST_SIDE = 4096  # pixels; no larger picture is decoded or sent, whatever the settings say
LONGEST_TEXT = 8_192  # characters of a prompt or an answer that can be sent


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Client(Section):
    """One client: its private folder is ``data/clients/<name>``; its backbone is a model folder or ``org/name@revision``.

    With ``url`` it is asked over HTTPS (``mor serve <name>`` runs its service) and not in this process.
    ``shared_anchors`` are ids of its pairs that the server may see (router kinds preferences and static); its own side decides.
    """

    backbone: ModelSource
    url: ClientUrl | None = None
    authority: str | None = None  # PEM file of the certificate authority to trust; the system's where absent
    shared_anchors: list[str] = []


class FedVqa(Section):
    pairs: Count  # preference pairs a client
    held_out_pairs: Count  # pairs of each kind a client, for judging reward models
    public: Count  # public prompts
    questions: Count  # evaluation questions a suite
    error_rate: Fraction  # how often the annotator prefers the worse answer
    styles: Annotated[dict[str, Style], Field(min_length=1)]  # each client's house style


class ZooModel(Section):
    architecture: Architecture
    mix: dict[str, float]  # share of each domain among the training images
    vision_steps: Count
    steps: Count
    schedule_steps: Count  # length of the learning rate's decay; a model that stops before its end is left to be improved


class Zoo(Section):
    seed: int
    images: Count
    batch_size: Count
    learning_rate: Positive
    caption_share: Fraction
    models: dict[str, ZooModel]


class Validation(Section):
    on_bad_rows: Literal["fail", "quarantine"]
    max_prompt_characters: Annotated[int, Field(ge=1, le=LONGEST_TEXT)]
    max_answer_characters: Annotated[int, Field(ge=1, le=LONGEST_TEXT)]
    min_image_side: Count  # pixels
    max_image_side: Annotated[int, Field(ge=1, le=MOST_SIDE)]
    image_formats: Annotated[list[ImageFormat], Field(min_length=1)]


class Lora(Section):
    rank: Annotated[int, Field(ge=0)]  # 0 trains every weight
    alpha: Count
    target_modules: str | list[str]  # PEFT's: "all-linear", or the names of the layers


class Rewards(Section):
    kind: RewardKind
    steps: Count
    batch_size: Count  # pairs
    learning_rate: Positive
    beta: Positive  # DPO's inverse temperature (implicit)
    floor: Positive  # nats; what the reference finds less likely than e^-floor is judged by the tuned model alone
    centre: Annotated[float, Field(ge=0)]  # lambda of the head's centring term
    validation_share: Fraction  # pairs a client keeps back: calibration and router fit
    lora: Lora


class Boundary(Section):
    """What leaves a client in a run, from its service's start to its end: its own settings count, not the server's."""

    epsilon: Annotated[float, Field(ge=0)] = 8.0  # of the one mean of prompt features, per pair; 0 adds no noise
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-05
    prompts: Count = 300  # that mean is over at most so many
    means: Count = 1  # bases in which it is given
    scores: Count = 1000000  # completions scored
    comparisons: Count = 10000  # "A or B?" questions answered


class RouterSettings(Section):
    kind: RouterKind = "means"
    hidden: Count = 8
    temperature: Positive = 1.0  # tau
    top_k: Annotated[int, Field(ge=0)] = 0  # 0 asks every client
    least_weight: Fraction = 0.02  # who has less than this share of a prompt's largest weight is not asked
    components: Annotated[int, Field(ge=1, le=256)] = 48  # of the basis in which a client gives its mean (means)
    anchors: Annotated[int, Field(ge=1, le=1024)] = 60  # shared pairs that each client is asked for (preferences, static)
    control: Annotated[int, Field(ge=0)] = 64  # control questions a client; who is not above chance is left out; 0 asks none
    refit_pairs: Annotated[int, Field(ge=0)] = 48  # "A or B?" questions a round for the online refit; 0 turns it off
    trust: Annotated[float, Field(ge=0)] = 1.0  # weight of KL(last router || refitted)


class GrpoSettings(Section):
    rounds: Count = 2
    steps: Count = 150  # a round
    prompts: Count = 16  # a step
    generations: Annotated[int, Field(ge=2)] = 8  # completions a prompt
    iterations: Count = 2  # steps on the same completions: GRPO's mu
    learning_rate: Positive = 0.001
    beta: Positive = 0.5  # KL penalty; TRL's default of 0 would drop the reference
    temperature: Positive = 1.0
    max_completion_tokens: Count = 12
    checkpoint_steps: Count = 10
    calibration: Literal["group", "reference"] = "group"
    mixture: Literal["mean", "min", "median", "variance"] = "mean"  # "mean" goes by the router, the others know no weights
    quorum: Count = 2  # clients that must answer
    coverage: Fraction = 0.5  # of a prompt's weight that must be with clients that answered, or nobody judges its answers
    lora: Lora = Lora(rank=16, alpha=32, target_modules=["gate_proj", "up_proj", "down_proj"])

    @model_validator(mode="after")
    def _whole_iterations(self) -> GrpoSettings:
        if self.checkpoint_steps % self.iterations:
            raise ValueError(
                f"checkpoint_steps {self.checkpoint_steps} must be a multiple of iterations {self.iterations}: "
                "a run cannot be resumed between two steps on the same completions"
            )
        return self


class EvaluationSettings(Section):
    resamples: Count  # bootstrap
    confidence: Fraction
    batch_size: Count
    samples: Count  # before-and-after samples a suite in the report


class AveragingSettings(Section):
    rounds: Count
    local_steps: Count  # of every client in a round
    batch_size: Count
    learning_rate: Positive
    proximal: Positive  # FedProx's mu


class Benchmark(Section):
    seeds: list[int]
    search_seed: int  # of the learning-rate search; not among the seeds above
    search_factors: list[Positive]  # tried times each method's learning rate
    averaging: AveragingSettings


class Bounds(Section):
    """What one delivery may hold; a larger one is refused as a whole."""

    rows: Count  # lines of its file
    line_bytes: Count  # of one of them
    rows_bytes: Count  # of the file
    pictures: Count  # files that its rows name
    picture_bytes: Count  # of one of them
    pictures_bytes: Count  # of all together
    pictures_pixels: Count  # of all together, by their headers


class Nightly(Section):
    cron: str  # when a night begins, in the time zone below
    timezone: str
    inbox: str  # folder of deliveries: <inbox>/<client>/<name>.jsonl, images beside it
    delivery: Bounds
    retries: Annotated[int, Field(ge=0)]  # of a stage that something unavailable ended, and of a push
    retry_delay: Positive  # seconds before the first retry; doubles with each
    time_limit: Positive  # seconds that a stage may take
    time_limits: dict[str, Positive]  # other limits, by stage
    push: bool  # data, models and the run cache to the DVC remote; commits and tags to git_remote
    git_remote: Address  # empty for none
    keep_nights: Annotated[int, Field(ge=0)]  # that `mor prune` keeps beside what champions need


class Drift(Section):
    """Distances that are worth a warning, and those that hold a delivery back."""

    least_rows: Count  # a smaller delivery is not judged
    significance: Fraction  # p-value above which a difference counts as chance
    shape_warn: Fraction  # Kolmogorov-Smirnov distance of image statistics and text lengths
    shape_stop: Fraction
    categories_warn: Fraction  # Jensen-Shannon distance of category shares
    categories_stop: Fraction
    agreement_warn: Fraction  # how much less often the last reward model ranks new pairs as their annotator did
    agreement_stop: Fraction


class Gate(Section):
    """What a candidate must keep to become champion; margins are of shares, at the lower end of the change's interval."""

    margin: Fraction  # by how much a client's preference satisfaction may fall below the champion's
    held_out_margin: Fraction  # likewise on the held-out suite
    total_margin: Fraction  # by how much either may fall below the pinned baseline's, over all nights
    accuracy_margin: Fraction  # by how much accuracy may fall below the champion's, and below the baseline's
    kl_budget: Positive  # nats from the base at the end of alignment
    calibration_mean: Positive  # largest |mean| of a reward model's scores on held-out pairs
    calibration_deviation: Annotated[float, Field(gt=1)]  # their deviation lies within [1/this, this]
    trial_seconds: Positive  # that a candidate has to load and answer in a fresh process

    @model_validator(mode="after")
    def _total_is_widest(self) -> Gate:
        if self.total_margin < max(self.margin, self.held_out_margin):
            raise ValueError(
                f"total_margin {self.total_margin:g} must be at least margin {self.margin:g} and held_out_margin "
                f"{self.held_out_margin:g}: what one night may lose, all of them may"
            )
        return self


class Params(Section):
    seed: Annotated[int, Field(ge=0)]
    threads: Annotated[int, Field(ge=0)]  # torch threads a stage; 0 leaves torch's choice
    base: ModelSource  # the policy's base model
    clients: dict[str, Client]
    fedvqa: FedVqa
    zoo: Zoo
    validation: Validation
    rewards: Rewards
    boundary: Boundary
    router: RouterSettings
    grpo: GrpoSettings
    evaluation: EvaluationSettings
    benchmark: Benchmark
    nightly: Nightly
    drift: Drift
    gate: Gate

    @field_validator("clients")
    @classmethod
    def _names(cls, clients: dict[str, Client]) -> dict[str, Client]:
        if not clients:
            raise ValueError("name at least one client")
        for name in clients:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in {*SUMMARIES, HELD_OUT}:
                raise ValueError(f"client name {name!r} must match [a-z][a-z0-9_]* and not be mean, worst or held_out")
        return clients


_FIXES = {
    "extra_forbidden": "unknown key: remove it or correct its spelling; known keys here: {known}",
    "missing": "missing key: add it (see params.yaml in the repository for a default)",
    "secret": "the address holds a login, and git, DVC and MLflow keep and show what is written here: remove the login and "
    "replace it where it is valid. {elsewhere}",
}
_ELSEWHERE = {  # where a secret belongs instead
    "url": "A client's service is told its token by MOR_TOKEN_<CLIENT>.",
    "git_remote": "Give git the login by `git config credential.helper`, or use an SSH key.",
}
_MOVED = {  # settings of earlier versions; their values are not repeated either
    "compare": "this section is called benchmark now, and what was called benchmark is called fedvqa: rename both",
    "nightly.webhook": "a webhook's address is a secret, and git, DVC and MLflow keep and show what is written here: remove "
    "the key, set the environment variable MOR_WEBHOOK to the address, and replace the address if it was ever committed",
}


def _known_keys(location: tuple[Any, ...]) -> str:
    model: Any = Params
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        model = field.annotation if field else model
        arguments = getattr(model, "__args__", ())
        model = arguments[-1] if arguments else model  # dict[str, Section] -> Section
    return ", ".join(getattr(model, "model_fields", {}))


def _left_out(values: dict[str, Any]) -> Iterator[str]:
    """Settings with a default for the library's users, which a file must name all the same: it is where they are looked up."""
    for section, model in (("boundary", Boundary), ("router", RouterSettings), ("grpo", GrpoSettings)):
        if isinstance(given := values.get(section), dict):
            yield from (f"{section}.{key}" for key in model.model_fields if key not in given)


def parse_params(values: dict[str, Any], source: str = "params.yaml") -> Params:
    """Validate settings; raises ``ConfigError`` that names every wrong key, what was got and the fix."""
    lines = [f"{source}: {key}: {_FIXES['missing']}" for key in _left_out(values)]
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            fix = _MOVED.get(key) or _FIXES.get(problem["type"], "{msg}; got {got!r}")
            elsewhere = _ELSEWHERE.get(key.rpartition(".")[2], "")
            got = type(problem["input"]) if elsewhere else problem["input"]  # an address may hold a login
            told = {"known": _known_keys(problem["loc"]), "msg": problem["msg"], "got": got, "elsewhere": elsewhere}
            lines.append(f"{source}: {key}: " + fix.format_map(told))
    if lines:
        raise ConfigError("\n".join(lines))
    return params


def load_params(path: Path = Path("params.yaml")) -> Params:
    """The settings of ``params.yaml``, read once a process; raises ``ConfigError`` with the line of a YAML mistake."""
    try:
        return _read_params(path, path.resolve(), path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the project's folder") from None


@cache
def _read_params(path: Path, resolved: Path, changed: int) -> Params:
    """``resolved`` and ``changed``, in nanoseconds, tell it from another file of that name, and from itself once edited."""
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, got {type(values).__name__}")
    return parse_params(values, str(path))
