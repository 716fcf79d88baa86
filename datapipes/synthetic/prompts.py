"""Prompts for a teacher: conversations of existing sets without their assistant turns."""

import hashlib
import re
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
_ROLES = {"developer": "system"}
# As the chat template finds a flag: no part of a longer word, path or tag; a space before it goes where one follows.
_FLAG = re.compile(r"( (?=/[a-z_]+(?:\s|$)))?(?<![A-Za-z0-9_/<])/(?:no_)?think(?![A-Za-z0-9_/])")


class _PromptReader(RowReader):
    """Documents whose metadata holds the system and user messages of a row; "unusable" says why there are none.

    The system text is the row's system message or, as smoltalk2 has it, custom_instructions in chat_template_kwargs.
    """

    more_columns = ("chat_template_kwargs", "tools")

    def _document(self, row: dict[str, Any], path: str, number: int) -> Document:
        assert self.rows.chat_column is not None
        self._check_columns(row, path)
        text = self._chat(row, path, number)  # refuses what is no conversation
        messages = [
            {"role": _ROLES.get(m["role"], m["role"]), "content": m["content"] or ""}
            for m in row[self.rows.chat_column] or []
        ]
        kept = [message for message in messages if message["role"] in ("system", "user")]
        system = _without_flags(kept.pop(0)["content"]) if kept and kept[0]["role"] == "system" else ""
        arguments = self._arguments(row, path, number)
        custom = _without_flags(arguments.get("custom_instructions") or "")
        if system or custom:
            kept.insert(0, {"role": "system", "content": system or custom})
        unusable = ""
        if any(message["role"] not in ("system", "user", "assistant") for message in messages):
            unusable = "prompt with tool turns"
        elif row.get("tools") or any(arguments.get(name) for name in ("tools", "xml_tools", "python_tools")):
            unusable = "prompt with tools"
        elif system and custom and system != custom:
            unusable = "prompt with a system message and custom_instructions"
        elif not any(m["role"] == "user" and m["content"].strip() for m in kept):
            unusable = "prompt without a question"
        return Document(text=text, id=message_id(kept), metadata={"messages": kept, "unusable": unusable})

    def _arguments(self, row: dict[str, Any], path: str, number: int) -> dict[str, Any]:
        given = row.get("chat_template_kwargs") or {}
        try:
            arguments = orjson.loads(given) if isinstance(given, str) else given
        except orjson.JSONDecodeError:
            arguments = None
        if not isinstance(arguments, dict) or not isinstance(arguments.get("custom_instructions"), str | None):
            raise SourceError(
                f"Row {number} of {self._full_path(path)}: chat_template_kwargs is {given!r:.200}, no mapping with "
                "text for custom_instructions. Correct the file."
            )
        return arguments


def _without_flags(system: str) -> str:
    """The mode that the old answers were in is not the teacher's."""
    return _FLAG.sub("", system).strip()


def message_id(messages: list[Message]) -> str:
    """What a conversation asks, as an identifier: equal prompts are asked once."""
    return hashlib.blake2b(orjson.dumps(messages), digest_size=16).hexdigest()


def read_prompts(
    sets: list[Files | Hub], seen: set[str], lost: Counter[str], passed_on: Counter[str]
) -> Iterator[Document]:
    """Every prompt once, its id then in `seen`; those that cannot be asked are counted in `lost`.

    `passed_on` counts what the teacher gets besides one question.

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
            roles = [message["role"] for message in document.metadata["messages"]]
            passed_on.update({"system text": roles[0] == "system", "several questions": roles.count("user") > 1})
            yield document
    if not seen:
        raise SourceError("The prompt sets hold no conversation with a question. Correct prompts in the recipe.")
