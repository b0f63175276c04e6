"""The one place that spells paths, all relative to the project's folder, from which every stage runs.

Raw data keeps its images: an ``image`` in a validated row is relative to the *raw* folder of the same data
(``client_folder(name)``, ``PUBLIC``, ``EVAL``; held-out pairs keep theirs in ``EVAL`` too).
"""

from __future__ import annotations

from pathlib import Path

PARAMS = Path("params.yaml")
DVC_YAML = Path("dvc.yaml")
DVC_LOCK = Path("dvc.lock")

DATA = Path("data")
CLIENTS = DATA / "clients"
PUBLIC = DATA / "public"
EVAL = DATA / "eval"
VALIDATED = DATA / "validated"
QUARANTINE = DATA / "quarantine"
PUBLIC_PROMPTS = PUBLIC / "prompts.jsonl"
VALIDATED_PUBLIC = VALIDATED / "public.jsonl"
VALIDATED_EVAL = VALIDATED / "eval"

ARCHIVE = DATA / "archive"  # every delivery as it came, with what became of it; DVC keeps it (data/archive.dvc)

MODELS = Path("models")
ZOO = MODELS / "zoo"
REWARDS = MODELS / "rewards"
ROUTER = MODELS / "router"
POLICY = MODELS / "policy"

REPORTS = Path("reports")
STAGES = REPORTS / "stages"
VALIDATION_SITE = REPORTS / "validation"
CONTACT_SHEET = REPORTS / "contact_sheet.png"
DATA_CARD = REPORTS / "data_card.md"
ROUNDS = REPORTS / "rounds.csv"
ROUTER_WEIGHTS = REPORTS / "router_weights.csv"
EVALUATION = REPORTS / "evaluation.json"
METRICS = REPORTS / "metrics.json"
REPORT = REPORTS / "report.html"
PLOTS = REPORTS / "plots"
BENCHMARK_REPORT = REPORTS / "benchmark.html"
BENCHMARK_PLOTS = REPORTS / "benchmark"
NIGHT = REPORTS / "night.json"
NIGHT_REPORT = REPORTS / "night.html"
DIFF_REPORT = REPORTS / "diff.html"
PREFERENCE_CSV = PLOTS / "preference.csv"

CHECKPOINTS = Path(".checkpoints")
PREFECT_HOME = Path(".prefect")
NIGHTS = Path(".nights")  # a night in progress: its journal, lock and progress file


def client_folder(client: str) -> Path:
    """Raw, private folder of a client: ``preferences.jsonl``, perhaps ``answers.jsonl``, and ``images/``."""
    return CLIENTS / client


def client_preferences(client: str) -> Path:
    """Raw preference pairs of a client."""
    return client_folder(client) / "preferences.jsonl"


def client_answers(client: str) -> Path:
    """A client's private answers to public prompts; the file is optional."""
    return client_folder(client) / "answers.jsonl"


def eval_suite(suite: str) -> Path:
    """Raw evaluation questions of a suite."""
    return EVAL / f"{suite}.jsonl"


def eval_pairs(client: str) -> Path:
    """Raw held-out preference pairs of a client's domain."""
    return EVAL / "pairs" / f"{client}.jsonl"


def validated(raw: Path) -> Path:
    """Clean rows of a raw ``.jsonl`` file: ``clients/<name>.jsonl``, ``public.jsonl``, or the same name below ``eval``."""
    return VALIDATED / _short(raw)


def quarantined(raw: Path) -> Path:
    """Where the bad rows of a raw ``.jsonl`` file go, with their reasons."""
    return QUARANTINE / _short(raw)


def _short(raw: Path) -> Path:
    if raw == PUBLIC_PROMPTS:
        return Path("public.jsonl")
    if raw.parent.parent == CLIENTS and raw.name == "preferences.jsonl":
        return Path("clients") / f"{raw.parent.name}.jsonl"
    return raw.relative_to(DATA)


def validated_client(client: str) -> Path:
    """Clean preference pairs of a client; images stay in ``client_folder(client)``."""
    return VALIDATED / "clients" / f"{client}.jsonl"


def validated_suite(suite: str) -> Path:
    """Clean evaluation questions; images stay in ``EVAL``."""
    return VALIDATED_EVAL / f"{suite}.jsonl"


def validated_pairs(client: str) -> Path:
    """Clean held-out pairs of a client's domain; images stay in ``EVAL``."""
    return VALIDATED_EVAL / "pairs" / f"{client}.jsonl"


def zoo_folder(name: str) -> Path:
    """A model of the zoo, an ordinary Hugging Face folder."""
    return ZOO / name


def reward_folder(client: str) -> Path:
    """A client's reward model: adapter, head and ``calibration.json``."""
    return REWARDS / client


def round_folder(number: int) -> Path:
    """What the policy's GRPO round ``number`` (from 1) leaves behind, its router among it."""
    return POLICY / "rounds" / str(number)


def stage_name(stage: str) -> str:
    """A DVC stage's name as a file and run name: ``reward@documents`` -> ``reward_documents``."""
    return stage.replace("@", "_")


def stage_metrics(stage: str) -> Path:
    """The flat metrics file of a stage, a DVC metrics file."""
    return STAGES / f"{stage_name(stage)}.json"


def checkpoint_folder(stage: str) -> Path:
    """Resumable state of a stage: outside DVC's outs, which DVC deletes before a stage runs."""
    return CHECKPOINTS / stage_name(stage)
