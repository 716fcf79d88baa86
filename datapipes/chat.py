"""Conversations as ChatML documents, whose special tokens no message can forge.

In a document's text, two noncharacters of Unicode stand for the special tokens; they are removed from messages. In
tokenisation they become the tokens' ids, while special tokens that a message spells out stay the characters they are.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

from datapipes.errors import SourceError

IM_START, IM_END = "<|im_start|>", "<|im_end|>"
_START, _END = "\ufdd0", "\ufdd1"
_SPECIAL = {_START: IM_START, _END: IM_END}
_FORGED = re.compile(f"[{_START}{_END}]")
_PARTS = re.compile(f"([{_START}{_END}])")
_ROLE = re.compile(r"[a-z_]+")


def render(messages: Sequence[dict[str, Any]]) -> str:
    """The text of a conversation, `messages` being `{"role": ..., "content": ...}` in their order.

    Raises:
        ValueError: if a message is not of that form.
    """
    text = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            found = ", ".join(message) if isinstance(message, dict) else type(message).__name__
            raise ValueError(f"message {number} has no role and content, but {found}")
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not _ROLE.fullmatch(role):
            raise ValueError(f"message {number} has the role {role!r}, which is no plain word")
        if not isinstance(content, str | None):
            raise ValueError(f"message {number} has a content of type {type(content).__name__}, not text")
        text.append(f"{_START}{role}\n{_FORGED.sub('', content or '')}{_END}\n")
    return "".join(text)


@dataclass(frozen=True)
class Encoded:
    """As much of `tokenizers.Encoding` as datatrove needs."""

    ids: list[int]


class ChatEncoder:
    """Encodes what `render` gives, in the form in which datatrove calls a tokenizer; every text ends with EOS.

    Raises:
        SourceError: if the tokenizer lacks ChatML's special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int) -> None:
        self._tokenizer = tokenizer
        self._ids = {stand_in: special_ids(tokenizer)[token] for stand_in, token in _SPECIAL.items()}
        self._eos_token_id = eos_token_id

    def get_vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode_batch(self, texts: Sequence[str]) -> list[Encoded]:
        parts = [[part for part in _PARTS.split(text) if part] for text in texts]
        plain = [part for part in chain.from_iterable(parts) if part not in self._ids]
        encoded = iter(self._tokenizer.encode_batch(plain, add_special_tokens=False))
        return [
            Encoded(
                [token for part in of_text for token in ([self._ids[part]] if part in self._ids else next(encoded).ids)]
                + [self._eos_token_id]
            )
            for of_text in parts
        ]


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of ChatML's special tokens.

    Raises:
        SourceError: if the tokenizer lacks one.
    """
    special = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    if missing := [token for token in _SPECIAL.values() if token not in special]:
        raise SourceError(
            f"The tokenizer has no special token {' and '.join(missing)}, which sources with a chat_column need. Use "
            f"another tokenizer, or leave these sources out."
        )
    return {token: special[token] for token in _SPECIAL.values()}
