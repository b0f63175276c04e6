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

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from mor.fedvqa.annotator import STYLES, in_style
from mor.fedvqa.render import CORNERS, DOMAINS, SIZE, Question
from mor.vlm.progress import ResumableTrainer, last_checkpoint, show_progress

PATCH = 8  # pixels; llava takes 16
TOKENS = 4  # an image, one a quarter
VISION_BATCH = 128
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CAPTION_PROMPT = "Describe the image."
TURNS = 4


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special: dict[str, str], image_token: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text has tokens, digits stay single so that reading a number is reading its digits."""
    extra = ["<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL.values(), *extra, *special.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    named = {**SPECIAL, "extra_special_tokens": special}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", additional_special_tokens=extra, **named)
    fast.chat_template = CHAT_TEMPLATE.replace("IMAGE", image_token)
    return fast


@dataclass(frozen=True)
class Size:
    """Widths and depths of one zoo model."""

    hidden: int = 128
    layers: int = 4
    vision_hidden: int = 128
    vision_layers: int = 3
    heads: int = 4

    @property
    def text(self) -> dict[str, Any]:
        return {
            "hidden_size": self.hidden,
            "intermediate_size": 3 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
        }

    @property
    def vision(self) -> dict[str, Any]:
        return {
            "hidden_size": self.vision_hidden,
            "intermediate_size": 3 * self.vision_hidden,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.heads,
            "image_size": SIZE,
            "patch_size": PATCH,
        }


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(tokenizer.vocab[token])


_SQUARE: dict[str, Any] = {"height": SIZE, "width": SIZE}
_HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _llava(texts: list[str], size: Size) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = train_tokenizer(texts, 512, {"image_token": "<image>"}, "<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**{**size.vision, "patch_size": 2 * PATCH}),
        text_config=LlamaConfig(**size.text, **_ids(tokenizer)),
        image_token_index=_id(tokenizer, "<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS,
    )
    images = CLIPImageProcessorPil(do_resize=True, size=_SQUARE, do_center_crop=False, crop_size=_SQUARE, **_HALF)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=2 * PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return AutoModelForImageTextToText.from_config(config), processor


def _idefics3(texts: list[str], size: Size) -> tuple[PreTrainedModel, ProcessorMixin]:
    special = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    tokenizer = train_tokenizer(texts, 448, special, "<image>")
    text = LlamaConfig(**size.text, num_key_value_heads=size.heads // 2, **_ids(tokenizer))
    config = Idefics3Config(
        vision_config=size.vision,
        text_config=text,
        scale_factor=2,
        image_token_id=_id(tokenizer, "<image>"),
        tie_word_embeddings=True,
    )
    images = Idefics3ImageProcessorPil(
        do_resize=True, size={"longest_edge": SIZE}, do_image_splitting=False, max_image_size={"longest_edge": SIZE}, **_HALF
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=TOKENS, chat_template=tokenizer.chat_template)
    return AutoModelForImageTextToText.from_config(config), processor


def _gemma3(texts: list[str], size: Size) -> tuple[PreTrainedModel, ProcessorMixin]:
    special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = train_tokenizer(texts, 512, special, "<start_of_image>")
    text = Gemma3TextConfig(
        **size.text, num_key_value_heads=size.heads // 2, head_dim=size.hidden // size.heads, sliding_window=64,
        query_pre_attn_scalar=size.hidden // size.heads, **_ids(tokenizer),
    )  # fmt: skip
    config = Gemma3Config(
        text_config=text,
        vision_config={**size.vision, "vision_use_head": False},
        mm_tokens_per_image=TOKENS,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
        tie_word_embeddings=True,
    )
    images = Gemma3ImageProcessorPil(do_resize=True, size=_SQUARE, **_HALF)
    processor = Gemma3Processor(images, tokenizer, image_seq_length=TOKENS, chat_template=tokenizer.chat_template)
    return AutoModelForImageTextToText.from_config(config), processor


ARCHITECTURES: dict[str, Callable[[list[str], Size], tuple[PreTrainedModel, ProcessorMixin]]] = {
    "llava": _llava,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
}


def sample_conversations(mix: dict[str, float], n: int, rng: np.random.Generator) -> list[list[Question]]:
    """``n`` images of the pre-training pool, each with up to ``TURNS`` questions; ``mix`` gives each domain's share."""
    names = list(mix)
    shares = np.array([mix[name] for name in names])
    conversations = []
    for pick in rng.choice(len(names), size=n, p=shares / shares.sum()):
        questions = DOMAINS[names[pick]](rng, "pretrain")
        conversations.append([questions[i] for i in rng.permutation(len(questions))[:TURNS]])
    return conversations


class Conversations(torch.utils.data.Dataset[dict[str, Any]]):
    """One image a row, its questions answered in random styles, a caption last in some; loss on the answers alone.

    Several turns share one image's computation, which trains about three times as many answers a second.
    """

    def __init__(self, chats: list[list[Question]], processor: Any, caption_share: float, rng: np.random.Generator) -> None:
        styles = list(STYLES)
        turns = []
        for questions in chats:
            pairs = [(q.prompt, in_style(q.value, styles[int(rng.integers(len(styles)))])) for q in questions]
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
                row = {key: batch[key][i] for key in batch if key != "attention_mask"}
                row["input_ids"], row["labels"] = list(row["input_ids"]), [-100] * len(row["input_ids"])
                for k, (prompt, answer) in enumerate(pairs):
                    if k:
                        asked = processor.tokenizer(f"<|user|>{prompt}<|assistant|>", add_special_tokens=False).input_ids
                        row["input_ids"] += asked
                        row["labels"] += [-100] * len(asked)
                    said = processor.tokenizer(answer + eos, add_special_tokens=False).input_ids
                    row["input_ids"] += said
                    row["labels"] += said
                self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def collate(rows: list[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch: input_ids and labels (B, T), -100 on prompt and padding, and stacked images."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([[*row[key], *([value] * (width - len(row[key])))] for row in rows])

    batch = {"input_ids": padded("input_ids", pad_id), "labels": padded("labels", -100)}
    batch["attention_mask"] = torch.tensor(
        [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    )
    for key in rows[0].keys() - batch.keys():
        is_text = key == "token_type_ids"
        batch[key] = padded(key, 0) if is_text else torch.tensor(np.stack([np.asarray(row[key]) for row in rows]))
    return batch


def image_inputs(data: Conversations, indices: list[int]) -> dict[str, torch.Tensor]:
    """The stacked image tensors of some rows, named as the model's ``get_image_features`` takes them."""
    keys = [key for key in ("pixel_values", "pixel_attention_mask") if key in data[0]]
    return {key: torch.tensor(np.stack([np.asarray(data[i][key]) for i in indices])) for key in keys}


def image_tokens(model: PreTrainedModel, images: dict[str, torch.Tensor]) -> torch.Tensor:
    """The connector's outputs as the language model will see them, shape (B, tokens, hidden), row by row."""
    output: Any = model.model.get_image_features(**images)
    tokens = output.pooler_output if hasattr(output, "pooler_output") else output
    return tokens if isinstance(tokens, torch.Tensor) else torch.stack(list(tokens))


def quarter_words(cell: str, quarter: int) -> set[str]:
    """The words that describe a quarter of an image: what lies there, and where it is."""
    return {*cell.split(), *CORNERS[quarter].split()}


def train_vision(
    model: Any,
    processor: Any,
    data: Conversations,
    chats: list[list[Question]],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> float:
    """Align each image token with the words for its quarter of the image, as CLIP aligns images with captions.

    An image token h is taught to say which words w describe its quarter, ``sigmoid(s <h, E_w> + b)``, with E the
    language model's own word embeddings. To find "the circle" and read off "red" is then a matter of matching words,
    which attention learns soon; with a probe of its own instead, binding stayed near chance for thousands of steps.
    Returns the share of image tokens in the last batches whose words are all right.
    """
    descriptions = [[quarter_words(cell, i) for i, cell in enumerate(questions[0].cells)] for questions in chats]
    words = sorted(set().union(*(described for image in descriptions for described in image)))
    spelt = [*words, *(f" {word}" for word in words)]  # opening an answer, and inside a sentence
    tokens = [(text.strip(), processor.tokenizer(text, add_special_tokens=False).input_ids) for text in spelt]
    whole = [(word, ids[0]) for word, ids in tokens if len(ids) == 1]
    ids = torch.tensor([token for _, token in whole])
    targets = torch.tensor(
        [[[word in described for word, _ in whole] for described in image] for image in descriptions]
    ).float()
    generator = torch.Generator().manual_seed(seed)
    scale, bias = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.full((len(whole),), -2.0))
    weights = [*model.parameters(), scale, bias]
    optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1.5e-3, total_steps=max(steps, 1), pct_start=0.1)
    accuracies = []
    for _ in track(range(steps), description="vision tower"):
        indices = torch.randint(len(chats), (batch_size,), generator=generator)
        seen = image_tokens(model, image_inputs(data, indices.tolist()))
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
    architecture: str,
    *,
    mix: dict[str, float],
    images: int,
    vision_steps: int,
    steps: int,
    schedule_steps: int,
    batch_size: int,
    learning_rate: float,
    caption_share: float,
    seed: int,
    checkpoints: Path,
    size: Size | None = None,
) -> tuple[PreTrainedModel, ProcessorMixin, float | None]:
    """Build a tiny model of ``architecture`` and train it from scratch; resumes from ``checkpoints`` after an interruption.

    Returns model, processor and the vision tower's accuracy (None after a resume past its training).
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    chats = sample_conversations(mix, images, rng)
    seen = [question for chat in chats[:5000] for question in chat]
    texts = [text for q in seen for text in (q.prompt, q.caption, *(in_style(q.value, style) for style in STYLES))]
    model, processor = ARCHITECTURES[architecture](texts, size or Size())
    data = Conversations(chats, processor, caption_share, rng)
    pad_id = processor.tokenizer.pad_token_id
    accuracy = None
    if last_checkpoint(checkpoints) is None:
        accuracy = train_vision(model, processor, data, chats, steps=vision_steps, batch_size=VISION_BATCH, seed=seed)
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        logging_steps=50,
        save_steps=500,
        save_total_limit=1,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=[],
        seed=seed,
    )
    optimiser = Muon(model, learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimiser, schedule_steps // 20, schedule_steps)
    trainer = ResumableTrainer(
        model, arguments, optimizers=(optimiser, schedule), train_dataset=data, data_collator=lambda rows: collate(rows, pad_id)
    )
    show_progress(trainer, {"loss": "loss"})
    trainer.train_or_resume()
    return model, processor, accuracy
