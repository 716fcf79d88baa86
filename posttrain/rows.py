"""The row contract: from a row in any of the usual schemas to the conversation that is trained on, or to a reason.

docs/post_training.md has it as a table. What cannot be taken as it is meant becomes an `UnusableRow`, which is counted
with file and row; what is repaired leaves a note, which is counted as well. Nothing of a row is left out without a word
but columns and keys that this module does not name.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foundation.json_text import loads
from posttrain.template import THINK_END, THINK_START, Message

ROLES = ("system", "user", "assistant", "tool")
_ROLE_NAMES = {role: role for role in ROLES} | {
    "developer": "system",
    "human": "user", "gpt": "assistant", "observation": "tool", "function": "tool",
}  # fmt: skip
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # where transformers looks, in this order
TEMPLATE_ARGUMENTS = ("enable_thinking", "custom_instructions", "xml_tools", "python_tools", "tools")
# Keys of a message besides its content; text under another one is content that this module does not find.
_BESIDES_CONTENT = {"role", "from", "name", "id", "tool_call_id", "tool_calls", "function_call", "train", "training",
                    "weight", *REASONING_FIELDS}  # fmt: skip
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")
_TOOL_RESPONSE = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)

SPLIT_RESPONSES = "a tool message of several responses split"
CONTENT_AS_JSON = "tool content that is no text written as JSON"
NULLS_LEFT_OUT = "null in tools or calls of a column left out: the file cannot tell it from an absent key"
NO_LOSS_ASKED = "turns that ask for no loss carry none"
OTHER_PROMPT = "prompt is not in the conversations beside it, and left out"


class UnusableRow(Exception):
    """A row that is dropped; the text is the reason under which it is counted."""


@dataclass(frozen=True)
class Conversation:
    """Messages with text for content and reasoning inline; `trained` says of each reply whether it may carry loss."""

    messages: list[Message]
    trained: list[bool]
    notes: list[str]


@dataclass(frozen=True)
class Pair:
    """`sides` are chosen and rejected, whole conversations that differ in their last reply alone."""

    sides: dict[str, list[Message]]
    notes: list[str]


def row_of_line(line: str) -> dict[str, Any]:
    """A line of a JSON-lines file, exactly as it is: nulls and the order of keys stay.

    Raises:
        UnusableRow: it is no JSON object.
    """
    try:
        row = loads(line.removeprefix("\ufeff"))  # the mark that Windows programs put before a file
    except ValueError as error:
        raise UnusableRow("the line is no JSON") from error
    if not isinstance(row, dict):
        raise UnusableRow(f"the line is JSON, but {type(row).__name__} and no object")
    return row


def without_filled_nulls(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A row of columns without the nulls that Arrow writes for the keys of other rows; a note if one stood where a
    null may be meant."""
    return _without_none(dict(row)), [NULLS_LEFT_OUT] if _has_null(row) else []


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _has_null(value: Any, is_meant: bool = False) -> bool:
    if value is None:
        return is_meant
    if isinstance(value, list):
        return any(_has_null(item, is_meant) for item in value)
    if not isinstance(value, Mapping):
        return False
    return any(
        _has_null(item, is_meant or key in ("tools", "xml_tools", "arguments")) if item is not None else is_meant
        for key, item in value.items()
    )


def conversation_of(row: Mapping[str, Any]) -> Conversation:
    """A supervised row: `messages`, or ShareGPT's `conversations`, or `prompt` and `completion`.

    Raises:
        UnusableRow: it is none that can be trained on.
    """
    _refuse_media(row, "the row")
    notes: list[str] = []
    given = [name for name in ("messages", "conversations") if row.get(name) is not None]
    if len(given) > 1:
        raise UnusableRow("both messages and conversations")
    if given:
        messages = _messages(row[given[0]], given[0], notes)
    elif row.get("prompt") is not None and row.get("completion") is not None:
        prompt = _prompt(row["prompt"], notes)
        whole = _continuation(row["completion"], "completion", prompt, notes)
        messages = [{**message, "train": False} for message in whole[: len(prompt)]] + whole[len(prompt) :]
    else:
        raise UnusableRow(f"no messages; the row has {_columns_of(row)}")
    messages = _with_system_column(row, messages)
    _check_replies(messages, given[0] if given else "prompt and completion")
    trained = [message.get("train", True) for message in messages if _is_reply(message)]
    if not any(trained):
        raise UnusableRow("every reply asks for no loss")
    if given and not all(trained):  # the replies of a prompt carry none by nature
        notes.append(NO_LOSS_ASKED)
    return Conversation([_inline(message) for message in messages], trained, list(dict.fromkeys(notes)))


def pair_of(row: Mapping[str, Any]) -> Pair:
    """A preference row: `chosen` and `rejected`, each a whole conversation or what follows `prompt`.

    Raises:
        UnusableRow: it is no pair.
    """
    _refuse_media(row, "the row")
    notes: list[str] = []
    prompt = _prompt(row["prompt"], notes) if row.get("prompt") is not None else []
    sides = {}
    for name in ("chosen", "rejected"):
        if row.get(name) is None:
            raise UnusableRow(f"no {name}; the row has {_columns_of(row)}")
        messages = _with_system_column(row, _continuation(row[name], name, prompt, notes))
        _check_replies(messages, name)
        if not _is_reply(messages[-1]):
            raise UnusableRow(f"{name} does not end with an assistant turn")
        if not messages[-1].get("train", True):
            raise UnusableRow(f"the reply of {name} asks for no loss")
        sides[name] = [_inline(message) for message in messages]
    if sides["chosen"][:-1] != sides["rejected"][:-1]:
        raise UnusableRow("chosen and rejected answer different prompts")
    if sides["chosen"] == sides["rejected"]:
        raise UnusableRow("chosen equals rejected")
    return Pair(sides, list(dict.fromkeys(notes)))


def template_arguments_of(row: Mapping[str, Any], of_the_set: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the chat template: the set's, over them the row's `chat_template_kwargs` and `tools`.

    Raises:
        UnusableRow: an argument is none that a row may set, or not of the type that the template takes.
    """
    own = _parsed(row.get("chat_template_kwargs") or {}, "chat_template_kwargs")
    if not isinstance(own, dict):
        raise UnusableRow(f"chat_template_kwargs is {type(own).__name__}, no mapping")
    own = {key: value for key, value in own.items() if value is not None}  # which says nothing against the set's
    arguments = {key: value for key, value in {**of_the_set, **own}.items() if value is not None}
    if row.get("tools"):
        if arguments.get("tools"):
            raise UnusableRow("tools given in a column and in chat_template_kwargs")
        arguments["tools"] = row["tools"]
    if other := [name for name in arguments if name not in TEMPLATE_ARGUMENTS]:
        raise UnusableRow(f"chat_template_kwargs has {other[0]}, which is no argument that a row may set")
    if not isinstance(arguments.get("custom_instructions", ""), str):
        raise UnusableRow(f"custom_instructions is {type(arguments['custom_instructions']).__name__}, no text")
    for name in ("xml_tools", "python_tools"):
        _check_tool_texts(arguments.get(name, []), name)
    if tools := arguments.pop("tools", None):
        arguments["tools"] = _tools(tools)
        if arguments.get("xml_tools") and _tools(arguments["xml_tools"]) == arguments["tools"]:
            del arguments["xml_tools"]  # the same, said twice
    return arguments


def _columns_of(row: Mapping[str, Any]) -> str:
    return ", ".join(name for name, value in row.items() if value is not None) or "nothing"


def _check_tool_texts(given: Any, name: str) -> None:
    tools = [given] if isinstance(given, str) else given
    if not isinstance(tools, list) or not all(isinstance(tool, str | dict) for tool in tools):
        raise UnusableRow(f"{name} is neither text nor a list of texts and schemas")


def _tools(given: Any) -> list[dict[str, Any]]:
    """JSON schemas, given as a list, as texts of a list, or as the text of the list."""
    tools = _parsed(given, "tools")
    if tools is None:  # "null": the row has none
        return []
    if isinstance(tools, list):
        tools = [_parsed(tool, "tools") for tool in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UnusableRow("tools is no list of JSON schemas")
    return tools


def _parsed(given: Any, name: str) -> Any:
    """`given`, or what it is as JSON if it is text."""
    try:
        return loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise UnusableRow(f"{name} is text that is no JSON") from error


def _refuse_media(holder: Mapping[str, Any], where: str) -> None:
    for name in _MEDIA:
        if holder.get(name):
            raise UnusableRow(f"{where} has {name}; only text is trained on")


def _prompt(given: Any, notes: list[str]) -> list[Message]:
    if isinstance(given, str) and not _is_list_of_messages(given):
        return [{"role": "user", "content": given}]
    return _messages(given, "prompt", notes)


def _continuation(given: Any, name: str, prompt: list[Message], notes: list[str]) -> list[Message]:
    """The whole conversation of which `given` is all, or what comes behind the prompt."""
    if isinstance(given, str) and not _is_list_of_messages(given):
        if not prompt:
            raise UnusableRow(f"{name} is text, and there is no prompt")
        return [*prompt, {"role": "assistant", "content": given}]
    messages = _messages(given, name, notes)
    if messages[: len(prompt)] == prompt:
        return messages
    if messages[0]["role"] in ("assistant", "tool"):
        return [*prompt, *messages]
    if [message["role"] for message in prompt] != ["user"]:
        raise UnusableRow(f"{name} starts with a {messages[0]['role']} turn that is not the prompt's")
    if not any(prompt[0]["content"].strip() in message["content"] for message in messages):
        notes.append(OTHER_PROMPT)  # the question again, in smoltalk2's column of that name
    return messages


def _is_list_of_messages(text: str) -> bool:
    try:
        value = loads(text) if text.lstrip().startswith("[") else None
    except ValueError:
        return False
    return bool(value) and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value or [])


def _with_system_column(row: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    system = row.get("system")
    if not system:
        return messages
    if not isinstance(system, str):
        raise UnusableRow(f"system is {type(system).__name__}, no text")
    if not any(message["role"] == "system" for message in messages):
        return [{"role": "system", "content": system}, *messages]
    if messages[0]["content"].strip() != system.strip():
        raise UnusableRow("both a system column and another system message")
    return messages


def _check_replies(messages: Sequence[Message], name: str) -> None:
    replies = [message for message in messages if _is_reply(message)]
    if not replies:
        raise UnusableRow(f"no assistant turn in {name}")
    if not all(reply["content"].strip() or reply.get("tool_calls") for reply in replies):
        raise UnusableRow(f"empty assistant turn in {name}")


def _is_reply(message: Message) -> bool:
    return bool(message["role"] == "assistant")


def _messages(given: Any, name: str, notes: list[str]) -> list[Message]:
    if isinstance(given, str) and not _is_list_of_messages(given):
        raise UnusableRow(f"{name} is text, and no list of messages")
    messages = _parsed(given, name)
    if not isinstance(messages, list) or not messages:
        raise UnusableRow(f"{name} is empty or no list of messages")
    return [message for one in messages for message in _message(one, notes)]


def _message(given: Any, notes: list[str]) -> list[Message]:
    """One message, or one for each response of a tool message: the template wraps them itself."""
    if not isinstance(given, dict):
        raise UnusableRow(f"a message is {type(given).__name__}, no mapping")
    given = {key: value for key, value in given.items() if value is not None}
    _refuse_media(given, "a message")
    name = given.get("role", given.get("from"))
    role = _ROLE_NAMES.get(name) if isinstance(name, str) else None
    if role is None:
        raise UnusableRow(f"unknown role {name!r}")
    content = given.get("content", given.get("value"))
    if content is None:
        if role != "assistant" and (other := given.keys() - _BESIDES_CONTENT):
            raise UnusableRow(f"a {role} turn has no content but {min(other)}")
        content = ""
    message: Message = {"role": role}
    if (asked := _asked_loss(given)) is not None:
        if asked and role != "assistant":
            raise UnusableRow(f"a {role} turn asks for loss, which is on assistant turns alone")
        message["train"] = asked
    if calls := _tool_calls(given):
        if role != "assistant":
            raise UnusableRow(f"a {role} turn has tool calls")
        message["tool_calls"] = calls
    if role == "assistant":
        message |= {key: given[key] for key in REASONING_FIELDS if key in given}
    if role != "tool":
        return [{**message, "content": _text(content)}]
    if not isinstance(content, str) and not _is_parts(content):
        notes.append(CONTENT_AS_JSON)
        content = json.dumps(content, ensure_ascii=False)
    responses = _responses(_text(content))
    if len(responses) > 1:
        notes.append(SPLIT_RESPONSES)
    return [{**message, "content": response} for response in responses]


def _asked_loss(given: Mapping[str, Any]) -> bool | None:
    """Whether a turn asks for loss: axolotl's `train` (or `training`), OpenAI's `weight` of 0 or 1."""
    asked = set()
    for name in ("train", "training"):
        if not isinstance(flag := given.get(name), bool | None):
            raise UnusableRow(f"{name} of a turn is no boolean but {flag!r}")
        asked |= {flag} - {None}
    if "weight" in given:
        if given["weight"] not in (0, 1):
            raise UnusableRow(f"weight {given['weight']!r} of a turn; only 0 and 1 are known")
        asked.add(bool(given["weight"]))
    if len(asked) > 1:
        raise UnusableRow("train and weight of a turn contradict each other")
    return asked.pop() if asked else None


def _tool_calls(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = _parsed(given.get("tool_calls") or [], "tool_calls")
    if not isinstance(calls, list):
        raise UnusableRow("tool_calls is no list")
    if "function_call" in given:  # as OpenAI's interface had it first
        calls = [*calls, _parsed(given["function_call"], "function_call")]
    return [_tool_call(call) for call in calls]


def _tool_call(given: Any) -> dict[str, Any]:
    function = given.get("function", given) if isinstance(given, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UnusableRow("a tool call has no name")
    arguments = function.get("arguments", {})
    if not isinstance(_parsed(arguments, "arguments of a tool call"), dict):
        raise UnusableRow("arguments of a tool call are no JSON object")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _responses(text: str) -> list[str]:
    """What a tool message says: its one text, or each of the <tool_response> blocks that it consists of."""
    found, end = [], 0
    while match := _TOOL_RESPONSE.match(text, end):
        found.append(match[1].strip())
        end = match.end()
    return found if len(found) > 1 and end == len(text) else [text]


def _is_parts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)


def _text(content: Any) -> str:
    """Text, or the texts of a list of parts, as the templates join them."""
    if isinstance(content, str):
        return content
    if not _is_parts(content):
        raise UnusableRow(f"a message's content is {type(content).__name__}, neither text nor a list of parts")
    if other := [part["type"] for part in content if part["type"] != "text"]:
        raise UnusableRow(f"a message's content has a part of type {other[0]}; only text is trained on")
    if not all(isinstance(part.get("text") or "", str) for part in content):
        raise UnusableRow("the text of a part is no text")
    return "".join(part.get("text") or "" for part in content)


def _inline(message: Message) -> Message:
    """All reasoning of a reply inside its content, where both templates have it.

    Raises:
        UnusableRow: it stands in two places: in fields that differ, or in a field and the content.
    """
    content = message["content"]
    given = {_text(message.get(name) or "").strip() for name in REASONING_FIELDS} - {""}
    if len(given) > 1:
        raise UnusableRow("different reasoning in two fields")
    for reasoning in given:
        if has_think_tag(content):
            raise UnusableRow("reasoning in a field of its own and think tags in the content")
        block, answer = f"{THINK_START}\n{reasoning}\n{THINK_END}", content.lstrip("\n")
        content = f"{block}\n{answer}" if answer else block  # the template starts a line for a tool call itself
    left_out = (*REASONING_FIELDS, "train")
    return {**{key: value for key, value in message.items() if key not in left_out}, "content": content}


def has_think_tag(text: str) -> bool:
    return THINK_START in text or THINK_END in text
