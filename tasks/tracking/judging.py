"""What the gate judges by: the candidate's evaluation, and what champion and baseline answered to the same questions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mor.config import HELD_OUT, Params
from mor.data.schema import Question, read_rows
from mor.errors import UserError
from mor.evaluation.gate import BASE, BASELINE, CHAMPION, Check, Other, Verdict, judge, same_baseline
from mor.evaluation.metrics import Evaluation, Judged
from mor.files import digest, read_json
from mor.seeds import stream
from tasks.project import paths
from tasks.tracking.predicting import encoded, load_registered
from tasks.tracking.registry import EVALUATION, POLICY, Candidate, baseline, champion
from tasks.tracking.store import mlflow_client, quiet_mlflow

ROWS = 16  # that a champion answers afresh at a time: the largest pictures of which a served model takes no more


def judge_candidate(candidate: Candidate, params: Params) -> Verdict:
    """The gate's verdict on what ``reports/`` says of the candidate, against the champion and the baseline, or the base.

    If the candidate serves already, it is the verdict by which it came to serve: so a night that is cut off after the
    promotion and goes on ends with the same one.
    """
    serving = champion()
    if serving == candidate and (held := mlflow_client().get_model_version(POLICY, str(serving.policy)).tags.get("mor.checks")):
        return Verdict([Check(**check) for check in json.loads(held)])
    base, aligned = evaluated()
    before = _stored(serving) if serving else None
    verdict = judge(
        aligned,
        _others(serving, before, base, aligned, params.clients),
        clients=list(params.clients),
        kl=_number(read_json(paths.stage_metrics("align")).get("align.kl")),
        calibration=_calibration(params.clients, before),
        settings=params.gate,
        resamples=params.evaluation.resamples,
        confidence=params.evaluation.confidence,
        rng=stream(params.seed, "gate"),
    )
    if serving and (baseline() or serving).policy == serving.policy:
        return Verdict([*verdict.checks, same_baseline(serving.policy, params.gate)])
    return verdict


def evaluated() -> tuple[dict[str, list[Judged]], dict[str, list[Judged]]]:
    """Base's and aligned policy's replies by suite; raises ``UserError`` where one is missing."""
    answers = Evaluation.model_validate_json(paths.EVALUATION.read_text()).answers
    if missing := {"base", "aligned"} - answers.keys():
        raise UserError(f"{paths.EVALUATION}: no answers of {', '.join(sorted(missing))}; run `dvc repro --force evaluate`")
    return answers["base"], answers["aligned"]


def _number(value: Any) -> float:
    """What stands in a JSON file as a number; not a number where it is none or is missing, and no bound lets that pass."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _calibration(clients: Collection[str], before: Evaluation | None) -> dict[str, tuple[float, float]]:
    """Mean and deviation of each client's reward model; of those that have pairs of their own to score, or had."""
    described = read_json(paths.METRICS).get("reward_models", {})
    found = {}
    for client in clients:
        measured = described.get(client)
        if measured is None or client in measured.get("pair_accuracy", {}) or (before and client in before.calibration):
            numbers = (measured or {}).get("calibration") or {}
            found[client] = (_number(numbers.get("mean")), _number(numbers.get("deviation")))
    return found


def _others(
    serving: Candidate | None, before: Evaluation | None,
    base: Mapping[str, Sequence[Judged]], asked: Mapping[str, Sequence[Judged]], clients: Collection[str],
) -> list[Other]:  # fmt: skip
    """What the candidate is compared with: the base alone, or the champion and, if that is another, the baseline."""
    if serving is None:
        return [Other(BASE, base)]
    found, pinned = [(CHAMPION, serving, before)], baseline() or serving
    if pinned.policy != serving.policy:
        found.append((BASELINE, pinned, _stored(pinned)))
    judged = {suite: list(replies) for suite, replies in asked.items() if replies and suite in (*clients, HELD_OUT)}
    others = []
    for name, version, stored in found:
        answered = stored.answers.get("aligned", {}) if stored else {}
        new = set(clients) - version.rewards.keys()
        known = {suite: replies for suite, replies in judged.items() if suite not in new}
        answers = {suite: base[suite] for suite in judged if suite in new} | _answers_of(version, answered, known)
        had = [suite for suite, replies in answered.items() if replies]
        others.append(Other(name, answers, had, list(version.rewards), new))
    return others


def _stored(version: Candidate) -> Evaluation | None:
    """What was kept beside a registered policy of its evaluation; None where nothing was."""
    from mlflow.artifacts import download_artifacts

    registered = mlflow_client().get_model_version(POLICY, str(version.policy))
    if "mor.questions" not in registered.tags:
        return None
    with tempfile.TemporaryDirectory() as scratch, quiet_mlflow():
        kept = Path(download_artifacts(f"{registered.source}/{EVALUATION}", dst_path=scratch))
        return Evaluation.model_validate_json(kept.read_text())


def _answers_of(
    version: Candidate, stored: Mapping[str, list[Judged]], asked: Mapping[str, list[Judged]]
) -> dict[str, list[Judged]]:
    """What that policy answered to these questions when it was evaluated, or answers now if they are others."""

    def key(replies: Sequence[Judged]) -> list[tuple[str, str, str, str]]:
        return [(reply.id, reply.image, reply.prompt, reply.answer) for reply in replies]

    tags = mlflow_client().get_model_version(POLICY, str(version.policy)).tags
    same = tags.get("mor.questions") == digest(paths.EVAL)  # pictures may have changed under their names
    if same and all(suite in stored and key(stored[suite]) == key(replies) for suite, replies in asked.items()):
        return {suite: stored[suite] for suite in asked}
    return _answer_afresh(version, asked)


def _answer_afresh(version: Candidate, asked: Mapping[str, list[Judged]]) -> dict[str, list[Judged]]:
    """A registered policy's replies to questions that it was not evaluated on."""
    model, found = load_registered(POLICY, version.policy), {}
    for suite, replies in asked.items():
        rows = [{"image": encoded(paths.EVAL / reply.image), "prompt": reply.prompt} for reply in replies]
        parts = [pd.DataFrame(rows[start : start + ROWS]) for start in range(0, len(rows), ROWS)]
        texts = [text for part in parts for text in model.predict(part)["answer"].tolist()]
        questions = read_rows(paths.validated_suite(suite), Question)
        found[suite] = [
            reply.model_copy(update={"text": text, "preferred": question.satisfies(text), "right": question.is_right(text)})
            for reply, text, question in zip(replies, texts, questions, strict=True)
        ]
    return found
