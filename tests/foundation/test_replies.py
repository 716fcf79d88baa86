"""Every parser of model output and data rows: linear on hostile text, and the same as before on ordinary replies."""

import contextlib
import io
import json
import random
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from datapipes.chat import render as render_raw
from datapipes.synthetic import answers, prompts
from datapipes.words import words_of
from eval import judge as eval_judge
from eval import ruler
from eval.engine import Doc
from eval.reasoning import split_answer
from eval.tasks import long, tools
from eval.tasks.base import last_boxed
from eval.tasks.long import match_all, match_any, match_label
from eval.tasks.programs import extract_code
from eval.tasks.tools import call_score, parse_calls
from foundation.errors import UserError
from foundation.json_text import loads
from foundation.plain_text import markdown, plain
from foundation.recipe import load_recipe
from foundation.replies import cut_out, json_object
from foundation.secrets import secret_in
from foundation.terminal import Terminal
from foundation.yaml_text import YamlTextError, load
from posttrain import modes, rows
from posttrain.chat import Session
from posttrain.evaluate import judge
from posttrain.template import ToolCall, parse_reply, render
from report.blocks import Sample, Section, Text
from report.html import to_html
from slurm import adapter, failures

SIZE = 50_000
CALL, CALL_END = "<tool_call>", "</tool_call>"


def filled(unit: str, before: str = "", after: str = "") -> str:
    return before + unit * ((SIZE - len(before) - len(after)) // len(unit)) + after


HOSTILE = {
    "line breaks": filled("\n"),
    "spaces": filled(" "),
    "letters": filled("a"),
    "words": filled("the "),
    "line breaks behind a call": filled("\n", CALL),
    "line breaks in a call": filled("\n", CALL, CALL_END),
    "calls that never end": filled(CALL),
    "calls on lines that never end": filled(CALL + "\n"),
    "ends of calls": filled(CALL_END),
    "empty calls": filled(CALL + CALL_END),
    "deep lists in a call": filled("[", CALL, CALL_END),
    "deep objects in a call": filled('{"a":', CALL, CALL_END),
    "a deep argument": filled("[", CALL + '{"name": "f", "arguments": {"a": ', "1" + "]" * 16_000 + "}}" + CALL_END),
    "a long number in a call": filled("1", CALL, CALL_END),
    "a long number as argument": filled("1", CALL + '{"name": "f", "arguments": {"a": ', "}}" + CALL_END),
    "backslashes in a call": filled("\\", CALL + "[", CALL_END),
    "code that never ends": filled("<code>"),
    "code on lines that never end": filled("<code>\n"),
    "line breaks behind code": filled("\n", "<code>"),
    "backslashes in code": filled("\\", "<code>[", "</code>"),
    "fences": filled("```"),
    "fences on lines": filled("```\n"),
    "python fences": filled("```python\n"),
    "line breaks behind a fence": filled("\n", "```"),
    "spaces behind a fence": filled(" ", "```python"),
    "think blocks that never end": filled("<think>"),
    "line breaks in a think block": filled("\n", "<think>"),
    "line breaks before the end of one": filled("\n", "", "</think>"),
    "ends of think blocks": filled("</think>"),
    "think blocks": filled("<think>a</think>"),
    "flags": filled("/think "),
    "flags on lines": filled("/no_think\n"),
    "control tokens": filled("<|im_start|>"),
    "halves of control tokens": filled("<|im_"),
    "tool responses": filled("<tool_response>"),
    "grades": filled("[["),
    "spaces behind a grade": filled(" ", "[["),
    "digits of a grade": filled("0", "[[0."),
    "boxes": filled("\\boxed{"),
    "spaces behind a box": filled(" ", "\\boxed"),
    "closing markup": filled("[/b]", CALL, CALL_END),
    "opening markup": filled("[a"),
    "escape sequences": filled("\x1b]52;c;"),
    "marks of direction": filled("\u202e"),
    "pictures": filled("![a]("),
    "addresses": filled("://a:"),
    "aliases": filled("&a [*a, ", "a: "),
    "lists": filled("[", "a: "),
    "colons": filled("a: "),
    "zeros": filled("0"),
    "0x": filled("0x", " "),
    "dots": filled("a."),
    "errors": filled("Error"),
    "paths": filled("/a"),
    "options": filled("-N "),
    "variables": filled("${"),
    "quotes": filled("'"),
}
HELD_OUT = {"task": "", "question": "", "answer": "7"}
EXPECTED_CALL = {"name": "f", "arguments": {"a": 1}}
DOC = Doc(query="", choices=[""], gold_index=0, specific={"expected": [{"f": {"a": [1]}}], "outputs": ["x", "label 2"]})


def _conversation(text: str) -> list[dict[str, Any]]:
    call = {"name": "f", "arguments": {"a": text}}
    return [
        {"role": "system", "content": text},
        {"role": "user", "content": text},
        {"role": "assistant", "content": text, "tool_calls": [call]},
        {"role": "tool", "content": text},
    ]


def _without_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The plain template refuses them."""
    return [{key: value for key, value in message.items() if key != "tool_calls"} for message in messages]


def _mode_of_row(text: str) -> None:
    messages = _conversation(text)
    with contextlib.suppress(rows.UnusableRow):
        messages = rows.conversation_of({"messages": messages}).messages
    with contextlib.suppress(rows.UnusableRow):
        modes.mode_of_conversation(messages, {}, "dual_mode")
    with contextlib.suppress(rows.UnusableRow):
        modes.mode_of_pair({"chosen": messages[:3], "rejected": messages[:3]}, {}, "dual_mode")


def _teacher_answer(text: str) -> None:
    for thinking in (True, False):
        with contextlib.suppress(answers.Unusable):
            answers.parse_answer({"text": text, "reasoning": "", "finish_reason": "stop"}, thinking)


def _show_reply(text: str) -> None:
    session = Session.__new__(Session)
    session.console = Console(file=io.StringIO(), width=100)
    session._show_calls(parse_reply(text))


def _last_boxed(text: str) -> None:
    with contextlib.suppress(ValueError):
        last_boxed(text)


def _json(text: str) -> None:
    with contextlib.suppress(ValueError):
        loads(text)


def _yaml(text: str) -> None:
    with contextlib.suppress(YamlTextError):
        load(text)


def _override(text: str) -> None:
    with contextlib.suppress(UserError):
        load_recipe("recipes/tiny/pretrain.yaml", [f"general.run={text}"])


_EXCEPTIONS = re.compile(rf"^{failures._EXCEPTION}", re.MULTILINE)
PARSERS: dict[str, Callable[[str], object]] = {
    "parse_reply": parse_reply,
    "calls shown in the chat": _show_reply,
    "judge of held-out prompts": lambda text: judge(HELD_OUT, "think", 0, text, True),
    "mode of a row": _mode_of_row,
    "dual-mode template": lambda text: render(_conversation(text), xml_tools=[text], custom_instructions=text),
    "plain template": lambda text: render(_without_calls(_conversation(text)), template="chatml"),
    "parse_calls": parse_calls,
    "call_score": lambda text: call_score(text, DOC),
    "extract_code": extract_code,
    "split_answer": lambda text: split_answer(text, text),
    "match_all": lambda text: match_all(text, DOC),
    "match_any": lambda text: match_any(text, DOC),
    "match_label": lambda text: match_label(text, DOC),
    "grade of the judge model": eval_judge._GRADE.findall,
    "last_boxed": _last_boxed,
    "parse_answer": _teacher_answer,
    "without_thinking": answers.without_thinking,
    "repeats_itself": answers.repeats_itself,
    "flags of a prompt": prompts._without_flags,
    "words_of": words_of,
    "plain": plain,
    "markdown": markdown,
    "terminal": lambda text: Terminal(file=io.StringIO(), width=100).print(text, soft_wrap=True),
    "sample in a report": lambda text: to_html("", "", [Section("", text, [Sample(text, text, text), Text(text)])]),
    "secrets in a value": lambda text: secret_in(text, {"A_TOKEN": "0123456789"}),
    "JSON": _json,
    "YAML": _yaml,
    "value of a recipe": _override,
    "raw chat row": lambda text: render_raw(_without_calls(_conversation(text))),
    "prompt of a synthetic set": lambda text: prompts.message_id([{"role": "user", "content": text}]),
    "log of a failure": _EXCEPTIONS.findall,
    "cause of a failure": lambda text: failures.cause_of(text, None),
    "options of sbatch": lambda text: adapter._long_options([text]),
    "time limit": adapter._seconds,
    "sentences of RULER": ruler.sentences,
    "normalised answer": lambda text: (long.normalised(text), tools._normalised(text)),
}  # fmt: skip


PRINTING_SECONDS = 4  # rich takes 18 microseconds for each of 50,000 lines on a free core


@pytest.mark.parametrize("parser", PARSERS)
def test_hostile_text_takes_less_than_a_second(parser: str) -> None:
    """50,000 characters each, in CPU time: the machine may be busy. A parser neither raises nor hangs."""
    parse = PARSERS[parser]
    parse("")  # whatever is done once
    for name, text in HOSTILE.items():
        started = time.process_time()
        parse(text)
        seconds = time.process_time() - started
        assert seconds < (PRINTING_SECONDS if parser == "terminal" else 1), f"{name}: {seconds:.1f} s"


# What the parsers are compared with: the expressions that they replace, which are right, only slow.
_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_CODE = re.compile(r"<code>\n?(.*?)\n?</code>", re.DOTALL)
_FENCED = re.compile(r"```(\w*)[^\S\n]*\n(?:(.*?)```|(?=\s*\S)(.*)\Z)", re.DOTALL)
_THINK = re.compile(r"\A\s*<think>(?P<thinking>.*?)</think>\n?(?P<rest>.*)\Z", re.DOTALL)
_TEACHER_THINK = re.compile(r"\A\s*(?:<think>)?(?P<thinking>.*?)</think>(?P<text>.*)\Z", re.DOTALL)
_PIECES = [
    "<think>", "</think>", CALL, CALL_END, "<code>", "</code>", "```", "```python", "```py", "```js", "\n", "\n\n", " ",
    "\t", "\u00a0", "x", "print(1)", '{"name": "f", "arguments": {"a": 1}}', '{"name": 3}', "{oops", "``", "<", "é",
]  # fmt: skip


def random_replies(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(_PIECES, k=rng.randint(1, 12))) for _ in range(count)]


def test_replies_are_read_as_by_the_expressions() -> None:
    compared = 0
    for text in random_replies(20_000):
        fenced = _FENCED.findall(text)
        plain, python = ([a or b for word, a, b in fenced if word in words] for words in (("",), ("python", "py")))
        assert extract_code(text) == [text, *plain, *python][-1]
        blocks = [block for block in _CALL.findall(text)]
        known = {'{"name": "f", "arguments": {"a": 1}}': EXPECTED_CALL, '{"name": 3}': {"name": 3, "arguments": {}}}
        assert parse_calls(text) == ([known[block] for block in blocks] if known.keys() >= set(blocks) else None)
        teacher = _TEACHER_THINK.match(text)
        assert answers.without_thinking(text) == (teacher["text"].strip() if teacher else text)

        think = _THINK.match(text)
        reply, rest = parse_reply(text), think["rest"] if think else text
        if think is None and text.lstrip().startswith("<think>"):
            assert (reply.thinking, reply.answer, reply.tool_calls, reply.code) == (None, text.strip(), [], [])
            continue
        compared += 1
        assert reply.thinking == (think["thinking"].strip() if think else None)
        good = '{"name": "f", "arguments": {"a": 1}}'
        assert reply.tool_calls == [ToolCall("f", {"a": 1}) for block in _CALL.findall(rest) if block == good]
        assert reply.malformed_calls == [block for block in _CALL.findall(rest) if block != good]
        assert reply.code == _CODE.findall(_CALL.sub("", rest))
        assert reply.answer == _CODE.sub("", _CALL.sub("", rest)).strip()
    assert compared > 15_000


def test_calls_in_a_think_block_are_thoughts() -> None:
    call = f"{CALL}\n{json.dumps(EXPECTED_CALL)}\n{CALL_END}"
    for thought in (f"<think>\n{call}\n</think>\nyes", f"<think>\n{call}", f"\n<think>{call}<code>\nx\n</code>"):
        reply = parse_reply(thought)
        assert (reply.tool_calls, reply.code, reply.malformed_calls) == ([], [], [])
    assert parse_reply(f"<think>\nhm\n</think>\n{call}").tool_calls == [ToolCall("f", {"a": 1})]


def test_cut_out() -> None:
    assert cut_out("a<x>b</x>c<x>d</x>e", "<x>", "</x>") == (["b", "d"], "ace")
    assert cut_out("<x>a<x>b</x>c</x>", "<x>", "</x>") == (["a<x>b"], "c</x>")
    assert cut_out("a</x><x>b", "<x>", "</x>") == ([], "a</x><x>b")
    assert cut_out("", "<x>", "</x>") == ([], "")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
        (" {} ", {}),
        ("[1]", None),
        ("7", None),
        ("{oops", None),
        ("", None),
        ('{"a": ' * 99 + "1" + "}" * 99, json.loads('{"a": ' * 99 + "1" + "}" * 99)),
        ('{"a": ' * 101 + "1" + "}" * 101, None),
        ('{"a": ' * 5000 + "1" + "}" * 5000, None),
        ('{"a": ' + "1" * 5000 + "}", None),  # Python converts up to 4,300 digits
    ],
)
def test_json_object(text: str, value: dict[str, Any] | None) -> None:
    assert json_object(text) == value
