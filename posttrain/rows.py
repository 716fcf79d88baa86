"""What a row has to be before it is trained on: a conversation whose replies are in the mode that its header asks for.

Under `/think` replies open with one closed, filled think block, under `/no_think` they do not reason. A row that says
neither (no flag in the system message, no `enable_thinking`) is in the mode of its replies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.recipe import TemplateName
from posttrain.template import (
    EMPTY_THINK_BLOCK,
    THINK_END,
    THINK_START,
    Message,
    Mode,
    has_modes,
    reasoning_mode,
    split_thinking,
)

ROLES = ("system", "user", "assistant", "tool")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # where transformers looks, in this order

UNCLOSED = "unclosed think block"
NO_ANSWER = "no answer after the think block"


class UnusableRow(Exception):
    """A row that is dropped; the text is the reason under which it is counted."""


@dataclass(frozen=True)
class AgreedMode:
    """The mode of header and replies, which of the replies may carry loss, and what the report has to say about it.

    `arguments` give the header this mode; there are none for a template without header.
    """

    mode: Mode
    trained: list[bool]
    notes: list[str]
    arguments: dict[str, bool] = field(default_factory=dict)

    def as_the_template_takes(self, messages: Sequence[Message]) -> list[Message]:
        """With a `/no_think` header the empty think block, however spelled, is the template's to write."""
        if self.arguments and self.mode == "no_think":
            return [_without_block(message) if has_other_empty_block(message) else message for message in messages]
        return list(messages)


def without_none(value: Any) -> Any:
    """Arrow fills keys that other rows have with None; a template must not see them (enable_thinking=None)."""
    if isinstance(value, dict):
        return {key: without_none(item) for key, item in value.items() if item is not None}
    return [without_none(item) for item in value] if isinstance(value, list) else value


def check_messages(messages: Any, name: str) -> None:
    """Raises UnusableRow unless `messages` is a conversation with an assistant that says something in each turn."""
    if not isinstance(messages, list) or not messages:
        raise UnusableRow(f"{name} is empty or no list of messages")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise UnusableRow(f"unknown role {role!r}")
        said = message.get("content") or message.get("tool_calls")
        if message["role"] == "assistant" and not (said.strip() if isinstance(said, str) else said):
            raise UnusableRow(f"empty assistant turn in {name}")
    if not any(message["role"] == "assistant" for message in messages):
        raise UnusableRow(f"no assistant turn in {name}")


def checked_pair(row: Mapping[str, Any]) -> dict[str, list[Message]]:
    """Chosen and rejected as whole conversations that differ in their last reply alone, reasoning inline.

    Raises:
        UnusableRow: they are no such pair.
    """
    chosen: Any = row.get("chosen")
    rejected: Any = row.get("rejected")
    if isinstance(row.get("prompt"), list) and isinstance(chosen, list) and isinstance(rejected, list):
        chosen, rejected = row["prompt"] + chosen, row["prompt"] + rejected
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        check_messages(messages, name)
        if messages[-1]["role"] != "assistant":
            raise UnusableRow(f"{name} does not end with an assistant turn")
    if chosen[:-1] != rejected[:-1]:
        raise UnusableRow("chosen and rejected answer different prompts")
    if chosen == rejected:
        raise UnusableRow("chosen equals rejected")
    return {"chosen": with_inline_reasoning(chosen), "rejected": with_inline_reasoning(rejected)}


def with_inline_reasoning(messages: Sequence[Message]) -> list[Message]:
    """The conversation with text for content, and all reasoning inside it, where both templates have it.

    Raises:
        UnusableRow: a content is neither text nor a list of parts that are text.
        UnusableRow: a reply has reasoning in two places: in fields that differ, or in a field and the content.
    """
    texts = [{**message, "content": _text(message.get("content", ""))} for message in messages]
    return [_inline(message) if message["role"] == "assistant" else message for message in texts]


def _inline(message: Message) -> Message:
    content = message["content"]
    given = {_text(message.get(name) or "").strip() for name in REASONING_FIELDS} - {""}
    if len(given) > 1:
        raise UnusableRow("different reasoning in two fields")
    for reasoning in given:
        if _has_tag(content):
            raise UnusableRow("reasoning in a field of its own and think tags in the content")
        block, answer = f"{THINK_START}\n{reasoning}\n{THINK_END}", content.lstrip("\n")
        content = f"{block}\n{answer}" if answer else block  # the template starts a line for a tool call itself
    return {**{key: value for key, value in message.items() if key not in REASONING_FIELDS}, "content": content}


def _text(content: Any) -> str:
    """Text, or the texts of a list of parts, as the templates join them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise UnusableRow(f"a message's content is {type(content).__name__}, neither text nor a list of parts")
    if other := [part.get("type") for part in content if part.get("type") != "text"]:
        raise UnusableRow(f"a message's content has a part of type {other[0]}; only text is trained on")
    return "".join(str(part.get("text", "")) for part in content)


def _has_tag(text: str) -> bool:
    return THINK_START in text or THINK_END in text


def reply_fault(reply: Message) -> str:
    """What is wrong with the think block of an assistant message, reasoning inline; "" if nothing is."""
    content = reply["content"]
    thinking, answer = split_thinking(content)
    if thinking is None and content.lstrip().startswith(THINK_START):
        return UNCLOSED
    if _has_tag(answer) or _has_tag(thinking or ""):
        return "think tags besides one block at the start of the reply"
    if thinking is not None and not answer.strip() and not reply.get("tool_calls"):
        return NO_ANSWER
    return ""


def reasons(reply: Message) -> bool:
    """Whether an assistant message, reasoning inline, opens a think block and says something in it."""
    thinking, rest = split_thinking(reply["content"])
    return bool(thinking) if thinking is not None else rest.lstrip().startswith(THINK_START)


def has_other_empty_block(message: Message) -> bool:
    """Whether it is a reply with an empty think block that is not spelled as in the generation prompt."""
    if message["role"] != "assistant" or message["content"].lstrip("\n").startswith(EMPTY_THINK_BLOCK):
        return False
    return split_thinking(message["content"])[0] == ""


def _without_block(message: Message) -> Message:
    return {**message, "content": split_thinking(message["content"])[1]}


def mode_of_conversation(
    messages: Sequence[Message], arguments: Mapping[str, Any], template: TemplateName
) -> AgreedMode:
    """The mode of a supervised row, reasoning inline, in which every reply is trained on.

    Raises:
        UnusableRow: a reply's think block is malformed, or the header asks for the other mode.
    """
    replies = [message for message in messages if message["role"] == "assistant"]
    for fault in map(reply_fault, replies):
        if fault:
            raise UnusableRow(fault)
    thoughts = [reasons(reply) for reply in replies]
    if not has_modes(template):
        return AgreedMode("think" if thoughts[-1] else "no_think", [True] * len(replies), [])
    agreed = _agree(header_mode(messages, arguments, template), thoughts)
    if agreed.mode == "no_think" and any(map(has_other_empty_block, replies)):
        agreed.notes.append("empty think block written as the template's")
    return agreed


def mode_of_pair(
    pair: Mapping[str, Sequence[Message]], arguments: Mapping[str, Any], template: TemplateName
) -> AgreedMode:
    """The mode of a `checked_pair`, whose last replies are trained on. An unfinished reply may be why it was rejected.

    Raises:
        UnusableRow: as in a conversation, or chosen and rejected are in different modes.
    """
    notes = []
    thoughts = {name: reasons(messages[-1]) for name, messages in pair.items()}
    for name, messages in pair.items():
        fault = reply_fault(messages[-1])
        if name == "rejected" and fault in (UNCLOSED, NO_ANSWER):
            notes.append(f"{fault} in rejected")
        elif fault:
            raise UnusableRow(f"{fault} in {name}")
    if not has_modes(template):
        return AgreedMode("think" if thoughts["chosen"] else "no_think", [True], notes)
    header = header_mode(pair["chosen"], arguments, template)
    if header is None and thoughts["chosen"] != thoughts["rejected"]:
        raise UnusableRow("no mode given, and only one of chosen and rejected reasons")
    agreed, _ = (_agree(header, [thought], f" in {name}") for name, thought in thoughts.items())
    return AgreedMode(agreed.mode, [True], notes + agreed.notes, agreed.arguments)


def header_mode(messages: Sequence[Message], arguments: Mapping[str, Any], template: TemplateName) -> Mode | None:
    """The mode that the row asks for, a flag in the system message before `enable_thinking`; None if it has neither.

    Raises:
        UnusableRow: `enable_thinking` is no boolean. The template would take the text "false" for true.
    """
    given = arguments.get("enable_thinking")
    if not isinstance(given, bool | None):
        raise UnusableRow(f"enable_thinking is no boolean but {given!r}")
    system = messages[:1] if messages[0]["role"] == "system" else []
    asked = [True, False] if given is None else [given]
    modes = {reasoning_mode(system, template=template, enable_thinking=thinking) for thinking in asked}
    return modes.pop() if len(modes) == 1 else None


def _agree(header: Mode | None, thoughts: Sequence[bool], where: str = "") -> AgreedMode:
    """Compare the header with which replies reason. Under `/think` only those carry loss: histories often come without
    the reasoning of earlier turns."""
    mode: Mode = header or ("think" if any(thoughts) else "no_think")
    notes = [] if header else [f"no mode given, so /{mode} as in the reply"]
    arguments = {"enable_thinking": mode == "think"}
    if mode == "no_think":
        if any(thoughts):
            raise UnusableRow(f"reasoning under /no_think{where}")
        return AgreedMode(mode, [True] * len(thoughts), notes, arguments)
    if not any(thoughts):
        raise UnusableRow(f"no reasoning under /think{where}")
    if not all(thoughts):
        notes.append("turns without reasoning under /think carry no loss")
    return AgreedMode(mode, list(thoughts), notes, arguments)
