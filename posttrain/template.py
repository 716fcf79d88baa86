"""The chat templates: rendering, reasoning modes, and reading a reply back into thinking, answer and tool calls."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jinja2 import TemplateRuntimeError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from foundation.errors import UserError
from foundation.replies import cut_out, json_object
from posttrain.recipe import TemplateName

Message: TypeAlias = dict[str, Any]
Mode: TypeAlias = Literal["think", "no_think"]

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
THINK_START, THINK_END = "<think>", "</think>"
EMPTY_THINK_BLOCK = f"{THINK_START}\n\n{THINK_END}\n"

_FILES: dict[TemplateName, str] = {"dual_mode": "chat_template.jinja", "chatml": "chatml.jinja"}
_TRAINING_MARK = re.compile(r"\s*{%- (?:end)?generation -%}\s*")  # each of them removes the white space around it


@cache
def load_training_template(name: TemplateName) -> str:
    """Jinja source of a template: `dual_mode` (SFT, APO, inference) or `chatml` (mid-training).

    What carries loss stands between `{% generation %}` marks, which only transformers knows.
    """
    return (Path(__file__).parent / _FILES[name]).read_text(encoding="utf-8")


@cache
def load_template(name: TemplateName) -> str:
    """The same text without the marks, for every engine: what is saved with a model.

    Raises:
        UserError: the template has marks in another spelling.
    """
    text = _TRAINING_MARK.sub("", load_training_template(name))
    if re.search(r"{%[-+]?\s*(end)?generation", text):
        raise UserError(
            f"{_FILES[name]} marks what carries loss in another spelling than {{%- generation -%}} and "
            "{%- endgeneration -%}. Write both so: then they can be taken out of the template that is saved."
        )
    return text


@dataclass(frozen=True)
class Rendering:
    """A rendered conversation; `assistant_spans` are the half-open character ranges that the loss is taken on."""

    text: str
    assistant_spans: list[tuple[int, int]]


def render(
    messages: Sequence[Message],
    *,
    template: TemplateName = "dual_mode",
    add_generation_prompt: bool = False,
    **arguments: Any,
) -> Rendering:
    """Render without a tokenizer. `arguments` are those listed at the head of chat_template.jinja.

    Raises:
        TemplateError: for messages that the template cannot show, such as a call without a name.
    """
    try:
        rendered: Any = render_jinja_template(
            [list(messages)],
            chat_template=load_training_template(template),
            return_assistant_tokens_mask=True,
            add_generation_prompt=add_generation_prompt,
            **arguments,
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateRuntimeError(f"the template cannot show it ({error})") from None
    texts, spans = rendered
    return Rendering(texts[0], spans[0])


@cache
def has_modes(template: TemplateName) -> bool:
    """Whether the template says in the system turn which mode it is."""
    said = [{"role": "user", "content": ""}]
    thinking, answering = (
        render(said, template=template, enable_thinking=mode, date_string=".") for mode in (True, False)
    )
    return thinking.text != answering.text


def reasoning_mode(messages: Sequence[Message], *, template: TemplateName = "dual_mode", **arguments: Any) -> Mode:
    """The mode that flags and arguments select, as a template with modes decides it."""
    rendered = render(messages, template=template, add_generation_prompt=True, **arguments).text
    return "no_think" if rendered.endswith(EMPTY_THINK_BLOCK) else "think"


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """An assistant turn taken apart.

    `thinking` is the stripped text of the think block: "" for an empty block, None without a (closed) block.
    `answer` is what follows it without tool calls and code. `malformed_calls` holds the text of <tool_call> blocks
    that are no JSON object with `name` and `arguments`.
    """

    thinking: str | None
    answer: str
    tool_calls: list[ToolCall]
    code: list[str]
    malformed_calls: list[str]

    @property
    def mode(self) -> Mode | None:
        """The mode that this reply is in; None when it has no closed think block."""
        return None if self.thinking is None else "think" if self.thinking else "no_think"


def split_thinking(text: str) -> tuple[str | None, str]:
    """The stripped text of the think block that `text` opens with, and what follows it; (None, text) without a closed
    one."""
    opened = text.lstrip()
    thinking, closing, rest = opened.removeprefix(THINK_START).partition(THINK_END)
    if not (opened.startswith(THINK_START) and closing):
        return None, text
    return thinking.strip(), rest.removeprefix("\n")


def parse_reply(text: str) -> Reply:
    """Take apart what the model wrote after `<|im_start|>assistant\\n`; a trailing end-of-turn token is ignored.

    Calls and code in a think block are thoughts, also if the block was never closed.
    """
    text = text.removesuffix(TURN_END)
    thinking, rest = split_thinking(text)
    if thinking is None and text.lstrip().startswith(THINK_START):
        return Reply(None, text.strip(), [], [], [])
    blocks, rest = cut_out(rest, "<tool_call>", "</tool_call>")
    code, answer = cut_out(rest, "<code>", "</code>")
    code = [text.removeprefix("\n").removesuffix("\n") for text in code]
    calls, malformed = [], []
    for block in map(str.strip, blocks):
        call = _parse_call(block)
        if call is None:
            malformed.append(block)
        else:
            calls.append(call)
    return Reply(thinking, answer.strip(), calls, code, malformed)


def _parse_call(block: str) -> ToolCall | None:
    call = json_object(block)
    if call is None or not isinstance(call.get("name"), str) or not isinstance(call.get("arguments"), dict):
        return None
    return ToolCall(call["name"], call["arguments"])


def install_template(tokenizer: PreTrainedTokenizerBase, name: TemplateName) -> None:
    """Make `tokenizer` a chat tokenizer: the template, and the end of turn as its EOS.

    Raises:
        UserError: the vocabulary lacks the turn tokens.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (TURN_START, TURN_END) if token not in vocabulary]
    if missing:
        raise UserError(
            f"The tokenizer {tokenizer.name_or_path} has no token {' and no '.join(missing)}. Post-training needs both "
            "turn tokens in the vocabulary; train the tokenizer with them as special tokens."
        )
    tokenizer.chat_template = load_template(name)
    tokenizer.eos_token = TURN_END
    if tokenizer.pad_token is None:
        tokenizer.pad_token = TURN_END
