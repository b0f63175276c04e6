"""Try a candidate as whoever serves it would: from the registry, in a process that sees nothing else of the project.

The process starts in an empty folder with Python's ``-I``, which keeps the current folder, PYTHONPATH and the user's packages
out, and has ``gate.trial_seconds`` for all models together. Its output is ``.nights/trial.log``, which stays on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mor.config import Gate
from mor.evaluation.gate import SERVED, Trial, Verdict, served
from mor.evaluation.metrics import Judged
from tasks.project import paths
from tasks.project.processes import NIGHT_VARIABLE
from tasks.tracking.judging import evaluated
from tasks.tracking.packaging import SERVING
from tasks.tracking.predicting import WEIGHT, encoded
from tasks.tracking.registry import POLICY, Candidate, reward_name

QUESTIONS = 32  # that the policy is asked, of all suites together
LOG = paths.NIGHTS / "trial.log"


def try_candidate(candidate: Candidate, verdict: Verdict, gate: Gate) -> Verdict:
    """The verdict with the checks of the trial; one that has them already stays as it is."""
    asked = {suite: replies for suite, replies in evaluated()[1].items() if replies}
    if any(check.group == SERVED for check in verdict.checks) or not asked:  # without questions it does not pass anyway
        return verdict
    questions = [reply for replies in asked.values() for reply in _spread(replies, max(1, QUESTIONS // len(asked)))]
    pairs = {client: asked.get(client, next(iter(asked.values()))) for client in candidate.rewards}
    trial = run_trial(candidate, questions, pairs, gate.trial_seconds)
    return Verdict([*verdict.checks, *served(trial, [reply.text for reply in questions], list(candidate.rewards))])


def _spread(replies: Sequence[Judged], count: int) -> list[Judged]:
    """At most ``count`` of them, from the first to the last."""
    return [replies[i] for i in sorted({*np.linspace(0, len(replies) - 1, count).round().astype(int).tolist()})]


def run_trial(
    candidate: Candidate, questions: Sequence[Judged], pairs: Mapping[str, Sequence[Judged]], seconds: float
) -> Trial:
    """Ask the policy ``questions``, and each client's reward model for its scores of two answers to one of its ``pairs``."""

    def row(reply: Judged, **more: str) -> dict[str, str]:
        return {"image": encoded(paths.EVAL / reply.image), "prompt": reply.prompt} | more

    job = {POLICY: {"uri": f"models:/{POLICY}/{candidate.policy}", "rows": [row(q) for q in questions]}}
    for client, version in candidate.rewards.items():
        first, last = pairs[client][0], pairs[client][-1]
        rows = [row(first, completion=answer) for answer in (first.answer, last.answer)]
        job[client] = {"uri": f"models:/{reward_name(client)}/{version}", "rows": rows}
    found, failure = _in_fresh_process(job, seconds)
    results: dict[str, dict[str, Any]] = {label: found.get(label, {"trouble": failure}) for label in job}
    troubles = {label: f"{result['trouble']}; {LOG} says more" for label, result in results.items() if "trouble" in result}
    rows = results.pop(POLICY).get("rows", [])
    return Trial(
        answers=[row["answer"] for row in rows],
        weights=[{key.removeprefix(WEIGHT): row[key] for key in row if key.startswith(WEIGHT)} for row in rows],
        trouble=troubles.pop(POLICY, ""),
        scores={client: [row["score"] for row in result.get("rows", [])] for client, result in results.items()},
        troubles=troubles,
    )


def _in_fresh_process(job: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], str]:
    """What ``tasks/tracking/serving/try_models.py`` writes, and why it wrote nothing where it did not."""
    import mlflow

    script = (SERVING / "try_models.py").resolve()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MOR_")}  # no client's token
    kept |= {NIGHT_VARIABLE: str(Path.cwd()), "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    paths.NIGHTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, LOG.open("w") as log:
        given, result = Path(scratch) / "job.json", Path(scratch) / "result.json"
        given.write_text(json.dumps(job))
        command = [sys.executable, "-I", str(script), str(given), str(result)]
        try:
            done = subprocess.run(command, cwd=scratch, env=kept, stdout=log, stderr=log, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            return {}, f"it took longer than {seconds:g} s (gate.trial_seconds)"
        if done.returncode:
            return {}, f"the process ended with code {done.returncode}"
        return json.loads(result.read_text()), ""
