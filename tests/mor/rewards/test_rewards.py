"""Reward models: exact equivalences, calibration by hand, and a trainer that learns what it is shown."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerState

from mor.config import Lora, Rewards, load_params
from mor.data.schema import Preference
from mor.fedvqa.annotator import make_pair
from mor.fedvqa.render import draw_question
from mor.rewards.calibration import Calibration, standardise_groups
from mor.rewards.head import BradleyTerry
from mor.rewards.implicit import train_implicit
from mor.rewards.kinds import load_reward_model, trainer_of
from mor.rewards.model import CalibratedReward, HeadReward, ImplicitReward, ScalarHead
from mor.vlm.load import ModelError, Vlm
from mor.vlm.progress import BarWithFigures

BACKBONE = "models/zoo/llava"


def style_pairs(n: int) -> tuple[list[Preference], list[Image.Image]]:
    rng = np.random.default_rng(0)
    questions = [draw_question("medical", rng, "clients") for _ in range(n)]
    pairs = [make_pair(question, "field", "style", rng) for question in questions]
    rows = [
        Preference(id=str(i), image="", prompt=q.prompt, chosen=p.chosen, rejected=p.rejected)
        for i, (q, p) in enumerate(zip(questions, pairs, strict=True))
    ]
    return rows, [Image.fromarray(q.image) for q in questions]


def settings(**changes: object) -> Rewards:
    return load_params(Path("params.yaml")).rewards.model_copy(update={"steps": 16, "batch_size": 8, **changes})


def test_an_untrained_implicit_reward_is_zero() -> None:
    vlm, (pairs, images) = Vlm.load(BACKBONE), style_pairs(4)
    scores = ImplicitReward(vlm, vlm)([p.prompt for p in pairs], images, [p.chosen for p in pairs])
    assert scores.tolist() == [0.0] * 4


def test_what_the_reference_finds_impossible_is_judged_by_the_tuned_model_alone() -> None:
    class Fixed:
        def __init__(self, *log_probs: float) -> None:
            self.log_probs = torch.tensor(log_probs)

        def answer_log_probs(self, *_: object) -> torch.Tensor:
            return self.log_probs

    reward = ImplicitReward(Fixed(-1.0, -60.0), Fixed(-3.0, -80.0), floor=10.0)  # type: ignore[arg-type]
    assert reward(["q"] * 2, [], ["right", "garbage"]).tolist() == [2.0, -50.0]  # -1 + 3; -60 + 10, not +20


@pytest.mark.parametrize("kind", ["implicit", "head"])
def test_both_kinds_learn_a_house_style(kind: str, tmp_path: Path) -> None:
    pairs, images = style_pairs(96)
    train = slice(0, 64), slice(64, 96)
    chosen_settings = settings(kind=kind, steps=20)
    model, head = trainer_of(kind)(  # type: ignore[arg-type]
        BACKBONE, pairs[train[0]], images[train[0]], chosen_settings, seed=0, checkpoints=tmp_path / "trainer"
    )
    vlm = Vlm.load(BACKBONE)
    tuned = Vlm(model.eval(), vlm.processor)
    scorer = ImplicitReward(tuned, vlm) if head is None else HeadReward(tuned, head)
    held = pairs[train[1]]
    prompts, held_images = [p.prompt for p in held], images[train[1]]
    right = scorer(prompts, held_images, [p.chosen for p in held]) > scorer(prompts, held_images, [p.rejected for p in held])
    assert float(right.float().mean()) >= 0.9


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", ["implicit", "head"])
def test_a_training_interrupted_or_repeated_ends_with_the_same_weights(
    kind: str, rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, images = style_pairs(24)
    chosen = settings(kind=kind, steps=8, lora=Lora(rank=rank, alpha=8, target_modules="all-linear"))

    def train(folder: str) -> dict[str, torch.Tensor]:
        trained = trainer_of(kind)(BACKBONE, pairs, images, chosen, seed=0, checkpoints=tmp_path / folder)  # type: ignore[arg-type]
        parts = [part for part in trained if part is not None]
        return {f"{i}.{name}": value.clone() for i, part in enumerate(parts) for name, value in part.state_dict().items()}

    def killed(bar: BarWithFigures, args: object, state: TrainerState, *_: object, **__: object) -> None:
        if state.global_step == 5:  # a checkpoint has step 4
            raise KeyboardInterrupt

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(BarWithFigures, "on_step_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train("killed")
    for resumed in (train("killed"), train("killed")):  # from the middle, and from the end
        assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_the_bradley_terry_loss_is_the_documented_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from mor.rewards import head as module

    monkeypatch.setattr(module, "last_answer_state", lambda vlm, batch, mask: torch.tensor([[2.0], [0.5]]))
    vlm = Vlm(torch.nn.Identity(), None)
    loss = BradleyTerry(vlm, torch.nn.Flatten(0), centre=0.01)(torch.ones(2, 1))["loss"]  # type: ignore[arg-type]
    # -log sigmoid(2 - 0.5) + 0.01 * (2 + 0.5)^2 = log(1 + e^-1.5) + 0.0625
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1.5)) + 0.0625)


def test_each_distinct_completion_is_scored_once() -> None:
    asked: list[int] = []

    def scorer(prompts: list[str], images: list[Image.Image], completions: list[str]) -> torch.Tensor:
        asked.append(len(completions))
        return torch.tensor([float(len(text)) for text in completions])

    image = Image.new("RGB", (2, 2))
    model = CalibratedReward(scorer, Calibration(1.0, 2.0), "f")  # type: ignore[arg-type]
    assert model.score(["q"] * 4, [image] * 4, ["a", "bbb", "a", "bbb"]) == [0.0, 1.0, 0.0, 1.0]  # (1-1)/2, (3-1)/2
    assert asked == [2]


def test_a_score_that_is_not_finite_is_none() -> None:
    model = CalibratedReward(lambda *_: torch.tensor([math.nan, math.inf, 1.0]), Calibration(0.0, 1.0), "f")
    assert model.score(["q"] * 3, [Image.new("RGB", (2, 2))] * 3, ["a", "b", "c"]) == [None, None, 1.0]


def test_calibration_standardises_and_survives_a_constant() -> None:
    fitted = Calibration.fit(torch.tensor([1.0, 3.0, 5.0]))
    assert fitted == Calibration(3.0, 2.0)  # mean 9 / 3; sample variance (4 + 0 + 4) / 2
    assert fitted.apply(torch.tensor([5.0])).tolist() == [1.0]
    assert Calibration.fit(torch.ones(3)) == Calibration(1.0, 1.0)


def test_groups_are_standardised_apart_and_unscorable_kept() -> None:
    scores = np.array([1.0, 3.0, np.nan, 7.0, 7.0, 7.0])
    standard = standardise_groups(scores, 3)
    assert standard[:2].tolist() == [-1.0, 1.0]  # mean 2, deviation 1
    assert np.isnan(standard[2])
    assert standard[3:].tolist() == [0.0, 0.0, 0.0]


def test_a_saved_reward_model_scores_as_before_and_its_fingerprint_follows_its_weights(tmp_path: Path) -> None:
    pairs, images = style_pairs(8)
    model, _ = train_implicit(
        BACKBONE,
        pairs,
        images,
        settings(steps=2, lora=Lora(rank=4, alpha=8, target_modules="all-linear")),
        seed=0,
        checkpoints=tmp_path / "trainer",
    )
    folder = tmp_path / "reward"
    model.save_pretrained(str(folder / "adapter"))
    (folder / "reward.json").write_text(json.dumps({"kind": "implicit", "backbone": BACKBONE, "floor": 10.0}))
    Calibration(0.0, 1.0).save(folder / "calibration.json")
    vlm = Vlm.load(BACKBONE)
    prompts, answers = [p.prompt for p in pairs], [p.chosen for p in pairs]
    before = ImplicitReward(Vlm(model.eval(), vlm.processor), vlm, floor=10.0)(prompts, images, answers)
    saved = load_reward_model(folder)
    assert saved.score(prompts, images, answers) == pytest.approx(before.tolist(), abs=1e-3)
    Calibration(0.5, 1.0).save(folder / "calibration.json")
    assert load_reward_model(folder).fingerprint != saved.fingerprint


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"reward.json is missing; train it with `dvc repro`"):
        load_reward_model(tmp_path)


def test_the_head_gives_one_number_a_state() -> None:
    assert ScalarHead(8)(torch.zeros(3, 8)).shape == (3,)
