"""Tool calling, scored on the calls themselves: the right functions with allowed arguments, nothing else (BFCL)."""

import re
from typing import Any

from eval.benchmarks import Benchmark
from eval.engine import Doc
from eval.recipe import Task
from eval.tasks.common import Row, TaskPlan, answer_metric
from foundation.replies import cut_out, json_object


def bfcl(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Row: question (turns), function (schemas), ground_truth (one {name: {argument: allowed values}} per call)."""

    def prompt(row: Row, task_name: str) -> Doc:
        request = "\n".join(message["content"] for message in row["question"][0])
        specific = {"tools": [json_schema(tool) for tool in row["function"]], "expected": row["ground_truth"]}
        return Doc(query=request, choices=[""], gold_index=0, task_name=task_name, specific=specific)

    return TaskPlan(prompt, [answer_metric("ast_accuracy", call_score)])


# BFCL writes its schemas in Python's type names; templates and models know JSON Schema's.
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}


def json_schema(part: Any) -> Any:
    """`part` of a BFCL function description with JSON Schema's type names."""
    if isinstance(part, list):
        return [json_schema(item) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: _JSON_TYPES.get(value, value) if key == "type" and isinstance(value, str) else json_schema(value)
        for key, value in part.items()
    }


def call_score(answer: str, doc: Doc) -> float:
    """1.0 if the calls match the expected ones, in any order; with none expected, if there is no call."""
    expected = list((doc.specific or {})["expected"])
    calls = parse_calls(answer)
    if calls is None or len(calls) != len(expected):
        return 0.0
    for call in calls:
        match = next((wanted for wanted in expected if _call_matches(call, wanted)), None)
        if match is None:
            return 0.0
        expected.remove(match)
    return 1.0


def parse_calls(answer: str) -> list[dict[str, Any]] | None:
    """The calls of an answer as {"name", "arguments"}; None if one is not valid JSON."""
    calls = []
    for text in cut_out(answer, "<tool_call>", "</tool_call>")[0]:
        call = json_object(text.strip())
        if call is None or not isinstance(call.get("arguments", {}), dict) or "name" not in call:
            return None
        calls.append({"name": call["name"], "arguments": call.get("arguments", {})})
    return calls


def _call_matches(call: dict[str, Any], wanted: dict[str, dict[str, list[Any]]]) -> bool:
    ((name, allowed),) = wanted.items()
    return bool(call["name"] == name) and _arguments_match(call["arguments"], allowed)


def _arguments_match(given: dict[str, Any], allowed: dict[str, list[Any]]) -> bool:
    if given.keys() - allowed.keys():
        return False
    for argument, values in allowed.items():
        if argument not in given:
            if "" not in values:  # an empty string among the allowed values marks an optional argument
                return False
        elif not any(_value_matches(given[argument], value) for value in values):
            return False
    return True


def _value_matches(given: Any, allowed: Any) -> bool:
    if isinstance(given, str) and isinstance(allowed, str):
        return _normalised(given) == _normalised(allowed)
    if isinstance(given, bool) != isinstance(allowed, bool):
        return False
    if isinstance(given, dict) and isinstance(allowed, dict):  # an object lists the allowed values of each of its keys
        return _arguments_match(given, allowed)
    if isinstance(given, list) and isinstance(allowed, list):
        return len(given) == len(allowed) and all(map(_value_matches, given, allowed))
    return bool(given == allowed)


def _normalised(text: str) -> str:
    return re.sub(r"[ ,./\-_*^'\"]", "", text).lower()
