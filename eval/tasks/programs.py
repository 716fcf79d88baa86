"""From a model's answer to the program that is judged, by the conventions of the benchmarks' own evaluation.

Sources of the conventions: evalplus (HumanEval+, MBPP+) and LiveCodeBench's runner. A right program should not fail for
what stands around it, nor for a name that it would find on the platform.
"""

import ast
import io
import re
import threading
import warnings
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

warnings.filterwarnings("ignore", category=SyntaxWarning, module="<unknown>")  # of programs that are only parsed
_OPENING = re.compile(r"```([\w.+#-]*)[^\S\n]*\n")
_PARSING = threading.Lock()  # of two threads that parse at once, one fails in CPython 3.11 (gh-106905)
_PYTHON = ("python", "python3", "py", "py3")
_CUTS = 20  # a few are enough for what models write; thousands of decorators would take one each, of the whole program

# What a contest's platform has imported before the answer's first line.
CONTEST_HEADER = """\
from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string, re, datetime, collections, heapq, bisect, copy, math, random, statistics, itertools, functools
import operator, io, sys, json
sys.setrecursionlimit(50000)
"""


def extract_code(answer: str, names: Sequence[str] = ()) -> str:
    """The last block that is fenced as Python, else the last without a language, else the whole answer.

    Blocks that define one of `names` come first: behind the function often stands an example of its use. A block that
    the answer's end cuts off counts: nothing but its fence is missing.
    """
    last: dict[tuple[bool, bool], str] = {}
    position = 0
    while opening := _OPENING.search(answer, position):
        end = answer.find("```", opening.end())
        position = len(answer) if end < 0 else end + len("```")
        language, block = opening[1].lower(), answer[opening.end() : end if end >= 0 else len(answer)]
        if language in ("", *_PYTHON) and (
            end >= 0 or block.strip()
        ):  # nothing behind it: it closes what has no opening
            last[_defines(block, names), bool(language)] = block
    return last[max(last)] if last else answer


def _defines(code: str, names: Sequence[str]) -> bool:
    return any(f"def {name}(" in code or f"class {name}" in code for name in names)


def function_program(prompt: str, answer: str, name: str) -> str:
    """The program for a prompt that ends in a function's head and description, which `answer` completes or repeats."""
    code = extract_code(answer, [name])
    if f"def {name}(" in code:
        return with_header(prompt, code)  # its imports and helpers, which a whole reply may leave out
    return parsable(prompt, code)


def with_header(header: str, code: str) -> str:
    """`code` behind `header`; imports from __future__ stay in front of both."""
    if "__future__" not in code:
        return f"{header}\n{code}"
    try:
        body = _parsed(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"{header}\n{code}"
    last = max((node.end_lineno or 0 for node in body if _is_future(node)), default=0)
    lines = _lines(code)
    return "".join(lines[:last]) + f"{header}\n" + "".join(lines[last:])


def _parsed(code: str) -> ast.Module:
    with _PARSING:
        return ast.parse(code)


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _lines(code: str) -> list[str]:
    """As Python counts them; splitlines knows more ends of lines, such as the form feed."""
    return list(io.StringIO(code, newline=None))


def parsable(prompt: str, completion: str) -> str:
    """`prompt` and as many of the completion's lines as are Python with it; all of them if no number is.

    A base model goes on behind the function, with prose or a fence.
    """
    lines, before = _lines(completion), prompt.count("\n")
    for _ in range(_CUTS):
        program = prompt + "".join(lines)
        try:
            _parsed(program)
        except SyntaxError as error:  # it names the first line that is wrong, or what is never closed
            lines = lines[: min(len(lines) - 1, max((error.lineno or 0) - 1 - before, 0))]
        except (ValueError, RecursionError, MemoryError):
            break
        else:
            return program
        if not lines:
            break
    return prompt + completion


def same_output(found: str, expected: str) -> bool:
    """Whether a contest accepts the output: line by line the same text, or the same numbers."""
    ours, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (found, expected))
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(found: str, expected: str) -> bool:
    if found == expected:
        return True
    numbers = _numbers(expected)
    return numbers is not None and _numbers(found) == numbers


def _numbers(line: str) -> list[Decimal] | None:
    try:
        numbers = [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None
    return None if any(map(Decimal.is_snan, numbers)) else numbers  # comparing a signalling NaN is an error


def contest_assertion(call: str, expected: Any) -> str:
    """Tests for one call of a method. Expected values come from JSON, which has no tuples: they count as lists."""
    return (
        "def plain(x):\n"
        "    if isinstance(x, (list, tuple)):\n"
        "        return [plain(item) for item in x]\n"
        "    return {key: plain(item) for key, item in x.items()} if isinstance(x, dict) else x\n"
        f"assert plain({call}) == {expected!r}\n"
    )
