"""A person's text means itself: no tokenizer or processor takes a part of it for one of its own marks.

Tokenizers and processors read marks such as ``</s>``, ``<image>`` or ``<|im_end|>`` wherever they stand, also in a prompt
or an answer. There they would end an answer, ask for an image that isn't there (which fails the whole batch) or begin
another turn. ``PlainText`` puts a character without width after the first one of each mark, so that its letters become
ordinary tokens. Every other text stays as it is.

A text that already holds a mark broken in this way gets one such character more, so that two texts never become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from mor.errors import UserError

SEPARATORS = ("\u200b", "\u2060", " ")  # zero width space, word joiner; a space where a tokenizer drops both


@dataclass(frozen=True)
class PlainText:
    """Call it with every text of a person or a model before it enters a chat template, a tokenizer or a processor."""

    first: re.Pattern[str]  # the first character of every mark, whole or broken
    separator: str

    @classmethod
    def of(cls, processor: Any) -> PlainText:
        """For a processor with its tokenizer; raises ``UserError`` for one that finds its marks in broken ones too."""
        tokenizer, marks = processor.tokenizer, control_marks(processor)
        ids = set(tokenizer.convert_tokens_to_ids(marks)) - {tokenizer.unk_token_id}
        for separator in SEPARATORS:
            plain = cls(_first(marks, separator), separator)
            broken = tokenizer([plain(mark) for mark in marks], add_special_tokens=False).input_ids if marks else []
            if ids.isdisjoint(token for row in broken for token in row):
                return plain
        raise UserError(
            f"{type(tokenizer).__name__}: reads its marks ({', '.join(marks[:4])}, ...) in text whatever stands between their "
            "letters, so that an answer could forge them; use a model with another tokenizer"
        )

    def __call__(self, text: str) -> str:
        return self.first.sub(lambda match: match[0] + self.separator, text)


def control_marks(processor: Any) -> list[str]:
    """The marks of two characters or more: special tokens, other added ones that the chat template writes, the processor's.

    An added token that is neither (Gemma's ``<table>``, runs of spaces) is ordinary text to its model.
    """
    tokenizer = processor.tokenizer
    template = str(getattr(processor, "chat_template", None) or tokenizer.chat_template or "")
    added = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and not token.content.isspace())
    ]
    own = [getattr(processor, name, None) for name in dir(processor) if name.endswith("_token")]
    named = [str(mark) for mark in own if isinstance(mark, str | AddedToken)]  # others are methods: replace_image_token
    return sorted({mark for mark in [*added, *tokenizer.all_special_tokens, *named] if len(mark) > 1})


def _first(marks: Iterable[str], separator: str) -> re.Pattern[str]:
    rests: dict[str, list[str]] = {}
    for mark in marks:
        rests.setdefault(mark[0], []).append(re.escape(mark[1:]))
    return re.compile("|".join(f"{re.escape(c)}(?={separator}*(?:{'|'.join(rest)}))" for c, rest in rests.items()) or "(?!)")
