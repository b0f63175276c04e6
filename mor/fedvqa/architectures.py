"""The zoo's architectures at tiny sizes: a vision tower, a connector and a language model, with a processor and tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin

from mor.fedvqa.render import SIZE

PATCH = 8  # pixels; llava takes 16
TOKENS = 4  # an image, one a quarter
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, place: str, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text has tokens, digits stay single so that reading a number is reading its digits.

    ``place`` is what the chat template writes for an image; ``special`` names the tokens of an architecture.
    """
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", additional_special_tokens=extra, extra_special_tokens=special,
        chat_template=CHAT_TEMPLATE.replace("IMAGE", place), **SPECIAL,
    )  # fmt: skip


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
    ends = ("pad_token_id", "bos_token_id", "eos_token_id")
    return {"vocab_size": len(tokenizer)} | {end: getattr(tokenizer, end) for end in ends}


_SQUARE: dict[str, Any] = {"height": SIZE, "width": SIZE}
_HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _llava(texts: list[str], size: Size) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = train_tokenizer(texts, 512, "<image>", image_token="<image>")
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**size.vision | {"patch_size": 2 * PATCH}),
        text_config=transformers.LlamaConfig(**size.text, **_ids(tokenizer)),
        image_token_index=tokenizer.vocab["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS,
    )
    images = transformers.CLIPImageProcessorPil(do_resize=True, size=_SQUARE, do_center_crop=False, crop_size=_SQUARE, **_HALF)
    processor = transformers.LlavaProcessor(
        images, tokenizer, patch_size=2 * PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return transformers.AutoModelForImageTextToText.from_config(config), processor


def _idefics3(texts: list[str], size: Size) -> tuple[PreTrainedModel, ProcessorMixin]:
    tokenizer = train_tokenizer(
        texts, 448, "<image>", image_token="<image>", fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>", end_of_utterance_token="<end_of_utterance>",
    )  # fmt: skip
    config = transformers.Idefics3Config(
        vision_config=size.vision,
        text_config=transformers.LlamaConfig(**size.text, num_key_value_heads=size.heads // 2, **_ids(tokenizer)),
        scale_factor=2,
        image_token_id=tokenizer.vocab["<image>"],
        tie_word_embeddings=True,
    )
    images = transformers.Idefics3ImageProcessorPil(
        do_resize=True, size={"longest_edge": SIZE}, do_image_splitting=False, max_image_size={"longest_edge": SIZE}, **_HALF
    )
    processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=TOKENS, chat_template=tokenizer.chat_template)
    return transformers.AutoModelForImageTextToText.from_config(config), processor


def _gemma3(texts: list[str], size: Size) -> tuple[PreTrainedModel, ProcessorMixin]:
    special = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = train_tokenizer(texts, 512, special["boi_token"], **special)
    text = transformers.Gemma3TextConfig(
        **size.text, num_key_value_heads=size.heads // 2, head_dim=size.hidden // size.heads, sliding_window=64,
        query_pre_attn_scalar=size.hidden // size.heads, **_ids(tokenizer),
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config=size.vision | {"vision_use_head": False},
        mm_tokens_per_image=TOKENS,
        boi_token_index=tokenizer.vocab[special["boi_token"]],
        eoi_token_index=tokenizer.vocab[special["eoi_token"]],
        image_token_index=tokenizer.vocab[special["image_token"]],
        tie_word_embeddings=True,
    )
    images = transformers.Gemma3ImageProcessorPil(do_resize=True, size=_SQUARE, **_HALF)
    processor = transformers.Gemma3Processor(images, tokenizer, image_seq_length=TOKENS, chat_template=tokenizer.chat_template)
    return transformers.AutoModelForImageTextToText.from_config(config), processor


Build = Callable[[list[str], Size], tuple[PreTrainedModel, ProcessorMixin]]  # from texts that the tokenizer learns from
ARCHITECTURES: dict[str, Build] = {"llava": _llava, "idefics3": _idefics3, "gemma3": _gemma3}
