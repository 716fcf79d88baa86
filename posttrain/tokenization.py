"""From a row of a set to token ids with labels, or to the reason why it is dropped."""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from datasets import Features, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from foundation.code import Code
from posttrain.modes import AgreedMode, mode_of_conversation, mode_of_pair
from posttrain.recipe import Data, DataSet
from posttrain.rows import (
    UnusableRow,
    conversation_of,
    pair_of,
    row_of_line,
    template_arguments_of,
    without_filled_nulls,
)
from posttrain.template import TURN_END, TURN_START, Message, Mode, Rendering, render

IGNORED = -100  # label of a token without loss
FLAGS = ("/think", "/no_think", "/system_override")
ROW = "__row__"  # column with the row's number in its file, from 1
LINE = "__line__"  # the only other column of a JSON-lines file

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
        try:
            notes: list[str] = []
            if LINE in row:
                fields = row_of_line(row[LINE])
            else:
                fields, notes = without_filled_nulls({name: value for name, value in row.items() if name != ROW})
            taken = self._pair(fields, notes) if self.pairs else self._conversation(fields, notes)
            return {"row": row[ROW], **taken}
        except (UnusableRow, TemplateError) as error:
            reason = str(error)
        except Exception as error:  # of which no row may end the run, and none may go without a word
            reason = f"cannot be rendered: {type(error).__name__}: {error}".splitlines()[0]
        nothing: dict[str, Any] = {name: [] for name in self._columns}
        account = {"status": "dropped", "reason": reason, "mode": "", "notes": ""}
        return nothing | account | {"row": row[ROW], "tokens": 0, "trained_tokens": 0, "digest": 0}

    def _conversation(self, row: dict[str, Any], notes: list[str]) -> dict[str, Any]:
        conversation = conversation_of(row)
        messages = conversation.messages
        arguments = template_arguments_of(row, self.spec.chat_template_kwargs)
        agreed = mode_of_conversation(messages, arguments, self.data.chat_template)
        trained = [allowed and asked for allowed, asked in zip(agreed.trained, conversation.trained, strict=True)]
        if not any(trained):
            raise UnusableRow("no reply carries loss: those that reason ask for none")
        rendering = self._render(messages, agreed, arguments)
        notes = [*notes, *conversation.notes, *agreed.notes, *_notes_on_text(rendering.text, messages, arguments)]
        spans = rendering.assistant_spans
        if self.data.assistant_only_loss and len(spans) != len(trained):
            raise UnusableRow(f"the template marks {len(spans)} of {len(trained)} replies for loss")
        spans = [span for span, is_trained in zip(spans, trained, strict=False) if is_trained]
        ids, labels = tokenize_rendering(Rendering(rendering.text, spans), self.tokenizer)
        if not self.data.assistant_only_loss:
            if not all(trained):
                raise UnusableRow("turns without loss, and assistant_only_loss is false: every token is trained")
            labels = list(ids)
        status, reason = "kept", ""
        if len(ids) > self.data.max_length and self.data.packing_strategy != "wrapped":
            ids, labels = ids[: self.data.max_length], labels[: self.data.max_length]
            status, reason = "cut", "longer than max_length"
        trained_tokens = sum(label != IGNORED for label in labels)
        if not trained_tokens:
            raise UnusableRow("no trained token within max_length")
        account = _account(agreed.mode, notes, ids, trained_tokens) | {"status": status, "reason": reason}
        return {"input_ids": ids, "labels": labels, **account}

    def _pair(self, row: dict[str, Any], notes: list[str]) -> dict[str, Any]:
        pair = pair_of(row)
        arguments = template_arguments_of(row, self.spec.chat_template_kwargs)
        agreed = mode_of_pair(pair.sides, arguments, self.data.chat_template)
        notes = [*notes, *pair.notes, *agreed.notes]
        before = agreed.as_the_template_takes(pair.sides["chosen"][:-1])
        named = {**arguments, **agreed.arguments, "date_string": self.data.date_string}
        prompt = render(before, template=self.data.chat_template, add_generation_prompt=True, **named).text
        ids = {"prompt": _encode(prompt, self.tokenizer)}
        for name, messages in pair.sides.items():
            rendering = self._render(messages, agreed, arguments)
            notes += _notes_on_text(rendering.text, messages, arguments)
            whole = _encode(rendering.text[: rendering.assistant_spans[-1][1]], self.tokenizer)
            if whole[: len(ids["prompt"])] != ids["prompt"]:
                raise UnusableRow(f"{name} does not continue the generation prompt")
            if len(whole) > self.data.max_length:
                raise UnusableRow("longer than max_length")
            ids[name] = whole[len(ids["prompt"]) :]
        trained_tokens = len(ids["chosen"]) + len(ids["rejected"])
        account = _account(agreed.mode, notes, [token for part in ids.values() for token in part], trained_tokens)
        return {**{f"{name}_ids": part for name, part in ids.items()}, **account}

    def _render(self, messages: Sequence[Message], agreed: AgreedMode, arguments: Mapping[str, Any]) -> Rendering:
        """Raises UnusableRow when the text lacks something that the row says."""
        messages = agreed.as_the_template_takes(messages)
        named = {**arguments, **agreed.arguments, "date_string": self.data.date_string}
        rendering = render(messages, template=self.data.chat_template, **named)
        rendered, position = _bare(rendering.text), 0
        if _bare(arguments.get("custom_instructions", "")) not in rendered:
            raise UnusableRow("custom_instructions lost in rendering: there is a system message")
        for message in messages:
            said = _bare(message["content"])
            position = rendered.find(said, position)
            if position < 0:
                raise UnusableRow(f"{message['role']} text lost in rendering")
            position += len(said)
        return rendering


def _bare(text: str) -> str:
    """What of a text is the same in its rendering: white space and flags may be other ones, and spaces pull apart
    control tokens."""
    text = "".join(text.split())
    for flag in FLAGS:
        text = text.replace(flag, "")
    return text


def _notes_on_text(text: str, messages: Sequence[Message], arguments: Mapping[str, Any]) -> list[str]:
    said = json.dumps([messages, arguments], ensure_ascii=False)
    apart = any(text.count(token) > said.count(token) for token in ("<| ", "< tool_response >", "< /tool_response >"))
    return ["control tokens or tool-response tags in the content pulled apart"] if apart else []


def _account(mode: Mode, notes: Sequence[str], ids: Sequence[int], trained_tokens: int) -> dict[str, Any]:
    """Of a row that is kept."""
    return {
        "status": "kept",
        "reason": "",
        "mode": mode,
        "notes": "\n".join(dict.fromkeys(notes)),
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
