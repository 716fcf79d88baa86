"""The mode of a conversation: what its header asks for has to be what its replies do, turn by turn.

Under `/think` replies open with one closed, filled think block, under `/no_think` they do not reason. A row that says
neither (no flag in the system message, no `enable_thinking`) is in the mode of its replies.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.recipe import TemplateName
from posttrain.rows import UnusableRow, has_think_tag
from posttrain.template import (
    EMPTY_THINK_BLOCK,
    THINK_START,
    Message,
    Mode,
    has_modes,
    reasoning_mode,
    split_thinking,
)

UNCLOSED = "unclosed think block"
NO_ANSWER = "no answer after the think block"
OTHER_TAGS = "reasoning in other tags than <think>"
# As sets have them that were made with other models: <thinking>, <Thought>, <reasoning>, <|begin_of_thought|>, ...
_OTHER_TAGS = re.compile(
    r"<\|?(?:begin_of_|start_of_)?(?:think|thinking|thoughts?|reasoning|scratchpad)\|?>", re.IGNORECASE
)


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


def reply_fault(reply: Message) -> str:
    """What is wrong with the think block of an assistant message, reasoning inline; "" if nothing is."""
    content = reply["content"]
    thinking, answer = split_thinking(content)
    if thinking is None and content.lstrip().startswith(THINK_START):
        return UNCLOSED
    if thinking is None and _OTHER_TAGS.match(content.lstrip()):
        return OTHER_TAGS
    if has_think_tag(answer) or has_think_tag(thinking or ""):
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
