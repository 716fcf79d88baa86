"""From a row of a set to token ids with labels, or to the reason why it is dropped."""

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from datasets import Features, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from foundation.code import Code
from foundation.json_text import loads
from posttrain.recipe import Data, DataSet
from posttrain.rows import (
    AgreedMode,
    UnusableRow,
    check_messages,
    checked_pair,
    mode_of_conversation,
    mode_of_pair,
    with_inline_reasoning,
    without_none,
)
from posttrain.template import TURN_END, TURN_START, Message, Rendering, has_modes, render

IGNORED = -100  # label of a token without loss
FLAGS = ("/think", "/no_think", "/system_override")
ROW = "__row__"  # column with the row's number in its file, from 1

ACCOUNT = {
    **{name: Value("string") for name in ("status", "reason", "mode", "notes")},
    **{name: Value("int64") for name in ("row", "tokens", "trained_tokens", "digest")},
}


@cache
def _code_sha256() -> str:
    return Code().digest("posttrain/tokenization.py")


@dataclass(frozen=True)
class RowTokenizer:
    """Called with a row of the set, numbered in the column ROW, it gives `features`.

    `code` is there to be hashed: datasets keeps what it has mapped and knows a class of a module only by its name, so
    it would go on with what an earlier version of this code made.
    """

    tokenizer: PreTrainedTokenizerBase
    spec: DataSet
    data: Data
    pairs: bool
    code: str = field(default_factory=_code_sha256)

    @property
    def features(self) -> Features:
        """Token columns, and the account of the row; `notes` has one to a line."""
        return Features({**dict.fromkeys(self._columns, List(Value("int32"))), **ACCOUNT})

    @property
    def _columns(self) -> tuple[str, ...]:
        return ("prompt_ids", "chosen_ids", "rejected_ids") if self.pairs else ("input_ids", "labels")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A dropped row has empty columns."""
        number = row[ROW]
        fields = without_none({name: value for name, value in row.items() if name != ROW})
        try:
            return {"row": number, **(self._pair(fields) if self.pairs else self._conversation(fields))}
        except (UnusableRow, TemplateError) as error:
            nothing: dict[str, Any] = {name: [] for name in self._columns}
            account = {"status": "dropped", "reason": str(error), "mode": "", "notes": ""}
            return nothing | account | {"row": number, "tokens": 0, "trained_tokens": 0, "digest": 0}

    def _conversation(self, row: dict[str, Any]) -> dict[str, Any]:
        check_messages(row.get("messages"), "messages")
        messages = with_inline_reasoning(row["messages"])
        arguments = self._template_arguments(row)
        agreed = mode_of_conversation(messages, arguments, self.data.chat_template)
        rendering = self._render(messages, agreed, arguments)
        spans = [
            span for span, is_trained in zip(rendering.assistant_spans, agreed.trained, strict=False) if is_trained
        ]
        ids, labels = tokenize_rendering(Rendering(rendering.text, spans), self.tokenizer)
        if not self.data.assistant_only_loss:
            if not all(agreed.trained):
                raise UnusableRow("turns without reasoning under /think, and the loss is on every token")
            labels = list(ids)
        status, reason = "kept", ""
        if len(ids) > self.data.max_length and self.data.packing_strategy != "wrapped":
            ids, labels = ids[: self.data.max_length], labels[: self.data.max_length]
            status, reason = "cut", "longer than max_length"
        trained_tokens = sum(label != IGNORED for label in labels)
        if not trained_tokens:
            raise UnusableRow("no trained token within max_length")
        account = _account(agreed, ids, trained_tokens) | {"status": status, "reason": reason}
        return {"input_ids": ids, "labels": labels, **account}

    def _pair(self, row: dict[str, Any]) -> dict[str, Any]:
        pair = checked_pair(row)
        arguments = self._template_arguments(row)
        agreed = mode_of_pair(pair, arguments, self.data.chat_template)
        before = agreed.as_the_template_takes(pair["chosen"][:-1])
        arguments |= agreed.arguments
        prompt = render(before, template=self.data.chat_template, add_generation_prompt=True, **arguments).text
        ids = {"prompt": _encode(prompt, self.tokenizer)}
        for name, messages in pair.items():
            rendering = self._render(messages, agreed, arguments)
            whole = _encode(rendering.text[: rendering.assistant_spans[-1][1]], self.tokenizer)
            if whole[: len(ids["prompt"])] != ids["prompt"]:
                raise UnusableRow(f"{name} does not continue the generation prompt")
            if len(whole) > self.data.max_length:
                raise UnusableRow("longer than max_length")
            ids[name] = whole[len(ids["prompt"]) :]
        trained_tokens = len(ids["chosen"]) + len(ids["rejected"])
        account = _account(agreed, [token for part in ids.values() for token in part], trained_tokens)
        return {**{f"{name}_ids": part for name, part in ids.items()}, **account}

    @property
    def _has_header(self) -> bool:
        return has_modes(self.data.chat_template)

    def _template_arguments(self, row: Mapping[str, Any]) -> dict[str, Any]:
        own = row.get("chat_template_kwargs", {})
        if not isinstance(own, dict):
            raise UnusableRow(f"chat_template_kwargs is {type(own).__name__}, no mapping")
        arguments = {**self.spec.chat_template_kwargs, **own, "date_string": self.data.date_string}
        tools = row.get("tools")
        return {**arguments, "tools": _tools(tools)} if tools else arguments

    def _render(self, messages: Sequence[Message], agreed: AgreedMode, arguments: Mapping[str, Any]) -> Rendering:
        """Raises UnusableRow when the text lacks instructions of the row: rendering must not lose a persona."""
        messages = agreed.as_the_template_takes(messages)
        rendering = render(messages, template=self.data.chat_template, **{**arguments, **agreed.arguments})
        sources = [messages[0].get("content", "")] if messages[0]["role"] == "system" else []
        if self._has_header:
            sources.append(arguments.get("custom_instructions") or "")
        rendered = _in_one_line(rendering.text.split())
        for source in sources:
            words = [word for word in str(source).split() if not self._has_header or word not in FLAGS]
            if _in_one_line(words) not in rendered:
                raise UnusableRow("system text lost in rendering")
        return rendering


def _in_one_line(words: Sequence[str]) -> str:
    """Words as one line to compare, with the control tokens that the templates pull apart closed again."""
    return " ".join(words).replace("<| ", "<|").replace(" |>", "|>")


def _tools(given: Any) -> list[dict[str, Any]]:
    """JSON schemas, given as a list or as its JSON text."""
    try:
        tools = loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise UnusableRow("tools is text that is no JSON") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableRow("tools is no list of JSON schemas")
    return tools


def _account(agreed: AgreedMode, ids: Sequence[int], trained_tokens: int) -> dict[str, Any]:
    """Of a row that is kept."""
    return {
        "status": "kept",
        "reason": "",
        "mode": agreed.mode,
        "notes": "\n".join(agreed.notes),
        "tokens": len(ids),
        "trained_tokens": trained_tokens,
        "digest": _digest(ids),
    }


def tokenize_rendering(rendering: Rendering, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids and labels; a label is the token itself inside an assistant span and `IGNORED` elsewhere."""
    encoding = tokenizer(rendering.text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoding["input_ids"]
    _check_control_tokens(rendering.text, ids, tokenizer)
    labels = [IGNORED] * len(ids)
    spans = iter(rendering.assistant_spans)
    start, end = next(spans, (len(rendering.text), len(rendering.text)))
    for position, (left, right) in enumerate(encoding["offset_mapping"]):
        while left >= end and start < len(rendering.text):
            start, end = next(spans, (len(rendering.text), len(rendering.text)))
        if start <= left and right <= end:
            labels[position] = ids[position]
    return ids, labels


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    _check_control_tokens(text, ids, tokenizer)
    return ids


def _check_control_tokens(text: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """The only special tokens are the template's own turn tokens; content cannot smuggle in others."""
    special = _special_ids(tokenizer)
    if sum(token_id in special for token_id in ids) != text.count(TURN_START) + text.count(TURN_END):
        raise UnusableRow("special token in the content")


@cache
def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    return frozenset(token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)


def _digest(ids: Sequence[int]) -> int:
    """64-bit fingerprint of a token sequence, for counting duplicates and knowing a set again."""
    digest = hashlib.blake2b(array("i", ids).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
