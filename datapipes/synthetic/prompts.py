"""Prompts for a teacher: conversations of existing sets without their assistant turns."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import orjson
from datatrove.data import Document

from datapipes.errors import SourceError
from datapipes.inputs import find_input
from datapipes.readers import RowReader
from datapipes.registry import Files, Hub, Source

Message = dict[str, str]


class _PromptReader(RowReader):
    """Documents whose metadata holds the system and user messages of a row; "unusable" says why there are none."""

    def _document(self, row: dict[str, Any], path: str, number: int) -> Document:
        assert self.rows.chat_column is not None
        self._check_columns(row, path)
        text = self._chat(row, path, number)  # refuses what is no conversation
        messages = row[self.rows.chat_column]
        kept = [{"role": m["role"], "content": m["content"]} for m in messages if m["role"] in ("system", "user")]
        if kept and kept[0]["role"] == "system":
            instructions = _without_flags(kept[0]["content"] or "")
            kept[:1] = [{"role": "system", "content": instructions}] if instructions else []
        unusable = ""
        if any(message["role"] not in ("system", "user", "assistant") for message in messages):
            unusable = "prompt with tool turns"
        elif not any(m["role"] == "user" and (m["content"] or "").strip() for m in kept):
            unusable = "prompt without a question"
        return Document(text=text, id=message_id(kept), metadata={"messages": kept, "unusable": unusable})


def _without_flags(system: str) -> str:
    """The mode that the old answers were in is not the teacher's."""
    lines = [[word for word in line.split(" ") if word not in ("/think", "/no_think")] for line in system.split("\n")]
    return "\n".join(map(" ".join, lines)).strip()


def message_id(messages: list[Message]) -> str:
    """What a conversation asks, as an identifier: equal prompts are asked once."""
    return hashlib.blake2b(orjson.dumps(messages), digest_size=16).hexdigest()


def read_prompts(sets: list[Files | Hub], seen: set[str], lost: Counter[str]) -> Iterator[Document]:
    """Every prompt once, its id then in `seen`; those that cannot be asked are counted in `lost`.

    Raises:
        SourceError: a set is absent or unreadable.
    """
    for number, prompt_set in enumerate(sets):
        rows = prompt_set.model_copy(update={"chat_column": prompt_set.chat_column or "messages"})
        name = f"prompts.{number}"
        source = Source(name=name, category="reasoning", licence="", reader=rows)
        for document in _PromptReader(name, rows, find_input(source)).run():
            reason = "prompt asked twice" if document.id in seen else document.metadata["unusable"]
            if reason:
                lost[reason] += 1
                continue
            seen.add(document.id)
            yield document
    if not seen:
        raise SourceError("The prompt sets hold no conversation with a question. Correct prompts in the recipe.")
