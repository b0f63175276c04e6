"""The tiny model zoo: small vision-language models trained from scratch, saved as ordinary Hugging Face folders.

Real architectures from Transformers at tiny sizes, so that a fresh clone has models without a hub:

========  ===================================  ==============================  ====================
model     vision tower -> connector            language model                  tokenizer
========  ===================================  ==============================  ====================
llava     CLIP ViT, patches of 16 -> MLP       Llama                           byte-level BPE, 418
idefics3  SigLIP ViT, of 8 -> pixel shuffle    Llama, grouped queries          byte-level BPE, 419
gemma3    SigLIP ViT, of 8 -> average pooling  Gemma 3, sliding window, norms  byte-level BPE, 421
========  ===================================  ==============================  ====================

Each hands its language model four image tokens, one a quarter of the image: with sixteen, reading handwriting took
more than twice as long to learn.

Trained in two steps, as their big siblings are. First the vision tower and connector learn which words describe each
quarter of the image; from scratch through the language model alone, reading handwriting stays at chance for hundreds
of steps. Then the whole model learns to answer questions in every style at random, and to caption. Loss is on the
answers' tokens alone. `params.yaml` names each model's architecture and mix of domains: the base is a generalist, a
client's model a specialist.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, ProcessorMixin, TrainingArguments, get_cosine_schedule_with_warmup

from mor.config import Zoo, ZooModel
from mor.fedvqa.annotator import STYLES, in_style
from mor.fedvqa.architectures import ARCHITECTURES, Size
from mor.fedvqa.render import CORNERS, DOMAINS, DrawnQuestion, pick
from mor.vlm.progress import ResumableTrainer, last_checkpoint, show_progress
from mor.vlm.training import training_arguments

VISION_BATCH = 128
CAPTION_PROMPT = "Describe the image."
TURNS = 4
Chats = list[list[DrawnQuestion]]  # the questions about one image after another


def sample_conversations(mix: dict[str, float], n: int, rng: np.random.Generator) -> Chats:
    """``n`` images of the pre-training pool, each with up to ``TURNS`` questions; ``mix`` gives each domain's share."""
    shares = np.array(list(mix.values()))
    conversations = []
    for name in rng.choice(list(mix), size=n, p=shares / shares.sum()):
        questions = DOMAINS[name](rng, "pretrain")
        conversations.append([questions[i] for i in rng.permutation(len(questions))[:TURNS]])
    return conversations


class Conversations(torch.utils.data.Dataset[dict[str, Any]]):
    """One image a row, its questions answered in random styles, a caption last in some; loss on the answers alone.

    Several turns share one image's computation, which trains about three times as many answers a second.
    """

    def __init__(self, chats: Chats, processor: Any, caption_share: float, rng: np.random.Generator) -> None:
        turns = []
        for questions in chats:
            pairs = [(q.prompt, in_style(q.value, pick(rng, list(STYLES)))) for q in questions]
            if rng.random() < caption_share:
                pairs.append((CAPTION_PROMPT, questions[0].caption))
            turns.append(pairs)
        opening = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": pairs[0][0]}]}] for pairs in turns]
        heads = processor.apply_chat_template(opening, tokenize=False, add_generation_prompt=True)
        eos = processor.tokenizer.eos_token
        self.rows: list[dict[str, Any]] = []
        for start in range(0, len(chats), 1000):
            block = slice(start, start + 1000)
            batch = processor(text=heads[block], images=[[q[0].image] for q in chats[block]], add_special_tokens=False)
            for i, pairs in enumerate(turns[block]):
                asked, ids, labels = list(batch["input_ids"][i]), [], []
                for k, (prompt, answer) in enumerate(pairs):
                    if k:
                        asked = processor.tokenizer(f"<|user|>{prompt}<|assistant|>", add_special_tokens=False).input_ids
                    said = processor.tokenizer(answer + eos, add_special_tokens=False).input_ids
                    ids += asked + said
                    labels += [-100] * len(asked) + said
                row = {key: batch[key][i] for key in batch if key != "attention_mask"}
                self.rows.append(row | {"input_ids": ids, "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(rows: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch: input_ids and labels (B, T), -100 on prompt and padding, and stacked images."""
    fillers = {"input_ids": pad_id, "labels": -100, "attention_mask": 0, "token_type_ids": 0}
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        key: pad_sequence([torch.tensor(row[key]) for row in rows], batch_first=True, padding_value=fillers[key])
        if key in fillers
        else _stacked(rows, key)
        for key in rows[0]
    }


def _stacked(rows: list[dict[str, Any]], key: str) -> torch.Tensor:
    return torch.tensor(np.stack([np.asarray(row[key]) for row in rows]))


def image_tokens(model: PreTrainedModel, images: dict[str, torch.Tensor]) -> torch.Tensor:
    """The connector's outputs as the language model will see them, shape (B, tokens, hidden), row by row."""
    output: Any = model.model.get_image_features(**images)
    tokens = output.pooler_output if hasattr(output, "pooler_output") else output
    return tokens if isinstance(tokens, torch.Tensor) else torch.stack(list(tokens))


def train_vision(model: Any, processor: Any, data: Conversations, chats: Chats, *, steps: int, seed: int) -> float:
    """Align each image token with the words for its quarter of the image, as CLIP aligns images with captions.

    An image token h is taught to say which words w describe its quarter, ``sigmoid(s <h, E_w> + b)``, with E the
    language model's own word embeddings. To find "the circle" and read off "red" is then a matter of matching words,
    which attention learns soon; with a probe of its own instead, binding stayed near chance for thousands of steps.
    Returns the share of image tokens in the last batches whose words are all right.
    """
    descriptions = [  # of each quarter of each image: the words for what lies there, and for where it is
        [{*cell.split(), *corner.split()} for cell, corner in zip(questions[0].cells, CORNERS, strict=True)]
        for questions in chats
    ]
    words = sorted(set().union(*chain.from_iterable(descriptions)))
    spelt = [*words, *(f" {word}" for word in words)]  # opening an answer, and inside a sentence
    tokens = [(text.strip(), processor.tokenizer(text, add_special_tokens=False).input_ids) for text in spelt]
    whole = [(word, ids[0]) for word, ids in tokens if len(ids) == 1]
    ids = torch.tensor([token for _, token in whole])
    targets = torch.tensor([[[float(word in said) for word, _ in whole] for said in image] for image in descriptions])
    generator = torch.Generator().manual_seed(seed)
    scale, bias = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.full((len(whole),), -2.0))
    weights = [*model.parameters(), scale, bias]
    optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1.5e-3, total_steps=max(steps, 1), pct_start=0.1)
    accuracies = []
    for _ in track(range(steps), description="vision tower"):
        indices = torch.randint(len(chats), (VISION_BATCH,), generator=generator)
        rows = [data[i] for i in indices.tolist()]
        images: dict[str, torch.Tensor] = {
            key: _stacked(rows, key) for key in ("pixel_values", "pixel_attention_mask") if key in rows[0]
        }
        seen = image_tokens(model, images)
        logits = scale * seen @ model.get_input_embeddings().weight[ids].T + bias
        loss = binary_cross_entropy_with_logits(logits, targets[indices])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        accuracies.append(((logits > 0) == (targets[indices] > 0)).all(dim=-1).float().mean().item())
    return float(np.mean(accuracies[-50:]))


class Muon(torch.optim.Optimizer):
    """Torch's Muon for the layers' matrices and AdamW for everything else, as one optimiser.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """

    def __init__(self, model: PreTrainedModel, learning_rate: float) -> None:
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        chosen = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in chosen]
        self.parts = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        super().__init__([*matrices, *rest], {"lr": learning_rate})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for i, part in enumerate(self.parts):
            part.load_state_dict(state_dict[str(i)])
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def train_zoo_model(
    own: ZooModel, shared: Zoo, checkpoints: Path, size: Size | None = None
) -> tuple[PreTrainedModel, ProcessorMixin, float | None]:
    """Build a tiny model and train it from scratch by its ``own`` settings and those ``shared`` by all of the zoo.

    Resumes from ``checkpoints`` after an interruption. Returns model, processor and the vision tower's accuracy (None after a
    resume past its training).
    """
    rng = np.random.default_rng(shared.seed)
    torch.manual_seed(shared.seed)
    chats = sample_conversations(own.mix, shared.images, rng)
    seen = [question for chat in chats[:5000] for question in chat]
    texts = [text for q in seen for text in (q.prompt, q.caption, *(in_style(q.value, style) for style in STYLES))]
    model, processor = ARCHITECTURES[own.architecture](texts, size or Size())
    data = Conversations(chats, processor, shared.caption_share, rng)
    pad_id = processor.tokenizer.pad_token_id
    accuracy = None
    if last_checkpoint(checkpoints) is None:
        accuracy = train_vision(model, processor, data, chats, steps=own.vision_steps, seed=shared.seed)
    arguments = training_arguments(
        checkpoints, steps=own.steps, batch_size=shared.batch_size, learning_rate=shared.learning_rate, seed=shared.seed,
        logging_steps=50, save_steps=500, remove_unused_columns=False,
    )  # fmt: skip
    optimiser = Muon(model, shared.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimiser, own.schedule_steps // 20, own.schedule_steps)
    trainer = ResumableTrainer(
        model,
        TrainingArguments(**arguments),
        optimizers=(optimiser, schedule),
        train_dataset=data,
        data_collator=lambda rows: collate(rows, pad_id),
    )
    show_progress(trainer, {"loss": "loss"})
    trainer.train_or_resume()
    return model, processor, accuracy
