"""The zoo's models behave as any Hugging Face model would, whatever their architecture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mor.fedvqa.render import draw_question
from mor.vlm.load import ModelError, Vlm
from mor.vlm.progress import last_checkpoint

ZOO = sorted(path.name for path in Path("models/zoo").iterdir())
QUESTIONS = [draw_question(domain, np.random.default_rng(5), "test") for domain in ("documents", "medical", "scenes")]
PROMPTS, IMAGES = [q.prompt for q in QUESTIONS], [Image.fromarray(q.image) for q in QUESTIONS]
ANSWERS = ["47", "answer: left", "The answer is red."]


@pytest.fixture(scope="module", params=ZOO)
def vlm(request: pytest.FixtureRequest) -> Vlm:
    return Vlm.load(f"models/zoo/{request.param}")


def test_there_are_three_architectures_with_three_tokenizers() -> None:
    models = [Vlm.load(f"models/zoo/{name}") for name in ZOO]
    assert len({type(m.model).__name__ for m in models}) >= 3
    assert len({len(m.processor.tokenizer) for m in models}) >= 3


def test_any_text_survives_the_tokenizer(vlm: Vlm) -> None:
    text = "Größe: 12,5 mm² — 診断 🩻"
    assert vlm.processor.tokenizer.decode(vlm.processor.tokenizer(text).input_ids) == text


def test_a_batch_scores_as_its_rows_do_alone(vlm: Vlm) -> None:
    together = vlm.answer_log_probs(PROMPTS, IMAGES, ANSWERS)
    alone = [float(vlm.answer_log_probs([p], [i], [a])) for p, i, a in zip(PROMPTS, IMAGES, ANSWERS, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-3)


def test_log_probabilities_are_those_of_the_answers_tokens(vlm: Vlm) -> None:
    batch, mask = vlm.encode_answers(PROMPTS[:1], IMAGES[:1], ANSWERS[:1])
    with torch.inference_mode():
        log_probs = vlm.model(**batch).logits.float().log_softmax(-1)[0]
    positions = mask[0].nonzero()[:, 0].tolist()
    assert len(positions) == 3  # "4", "7", end of sequence
    expected = sum(float(log_probs[t - 1, batch["input_ids"][0, t]]) for t in positions)
    assert float(vlm.answer_log_probs(PROMPTS[:1], IMAGES[:1], ANSWERS[:1])) == pytest.approx(expected, abs=1e-4)


def test_the_router_s_features_do_not_depend_on_padding(vlm: Vlm) -> None:
    together = vlm.prompt_states(PROMPTS, IMAGES)
    alone = torch.cat([vlm.prompt_states([p], [i]) for p, i in zip(PROMPTS, IMAGES, strict=True)])
    assert torch.allclose(together, alone, atol=2e-3)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=str(tmp_path)):
        Vlm.load(str(tmp_path))


def test_the_last_whole_checkpoint_counts_and_a_torn_one_is_deleted(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none") is None
    for step in (8, 10, 12, 14):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-12/trainer_state.json").write_text('{"global_step": 12')
    (tmp_path / "checkpoint-14/trainer_state.json").unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-8"]
