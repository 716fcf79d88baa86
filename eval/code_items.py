"""Items of the small editions whose answer is code: functions, programs, tool calls."""

import json
import random
from typing import Any

from eval.benchmarks import Benchmark

Row = dict[str, Any]

_FUNCTIONS = [  # name, what it returns for a number, body
    ("add_{n}", "the number plus {n}", "return x + {n}"),
    ("times_{n}", "the number times {n}", "return x * {n}"),
    ("minus_{n}", "the number minus {n}", "return x - {n}"),
]


def _function(rng: random.Random) -> tuple[str, str, str, str]:
    """(name, description, body, test statements)."""
    name, description, body = (text.format(n=rng.randint(2, 30)) for text in rng.choice(_FUNCTIONS))
    number = name.rsplit("_", 1)[1]
    description, body = (text.rsplit(" ", 1)[0] + f" {number}" for text in (description, body))
    operator = body.split()[2]
    tests = [f"({x}) == ({x} {operator} {number})" for x in (0, 1, -3, 10, 99)]
    return name, description, body, "\n".join(f"    assert candidate{test}" for test in tests)


def humaneval(rng: random.Random, benchmark: Benchmark) -> Row:
    name, description, body, tests = _function(rng)
    return {
        "task_id": f"Ours/{name}",
        "prompt": f'def {name}(x: int) -> int:\n    """Return {description}."""\n',
        "canonical_solution": f"    {body}\n",
        "entry_point": name,
        # numpy, as the real set's tests
        "test": f"import numpy as np\n\ndef check(candidate):\n    assert np.isfinite(candidate(1))\n{tests}\n",
    }


def mbpp(rng: random.Random, benchmark: Benchmark) -> Row:
    name, description, body, tests = _function(rng)
    lines = tests.replace("    assert candidate", f"assert {name}").splitlines()
    return {
        "task_id": name,
        "prompt": f"Write a function {name} that returns {description}.",
        "code": f"def {name}(x):\n    {body}\n",
        "test_list": lines[:3],
        "test": "\n".join(lines),
    }


def livecodebench(rng: random.Random, benchmark: Benchmark) -> Row:
    n = rng.randint(2, 30)
    tests = [{"input": f"{x}\n", "output": f"{x * n}\n", "testtype": "stdin"} for x in (0, 1, 7, 25)]
    return {
        "question_content": f"Read an integer x and print x times {n}.",
        "starter_code": "",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": json.dumps(tests[1:]),
        "metadata": "{}",
    }


def bfcl(rng: random.Random, benchmark: Benchmark) -> Row:
    assert benchmark.dataset is not None
    kind = benchmark.dataset.subset
    city, other = rng.sample(["Paris", "Rome", "Lisbon", "Madrid", "Berlin", "Vienna", "Oslo", "Dublin"], 2)
    days = rng.randint(1, 9)
    weather = _schema("get_weather", "Weather forecast for a city.", {"city": "string", "days": "integer"})
    timer = _schema("set_timer", "Start a timer.", {"minutes": "integer"})
    calls = [{"get_weather": {"city": [city], "days": [days]}}]
    request = f"What will the weather be in {city} for the next {days} days?"
    functions = [weather]
    if kind == "multiple":
        functions = [timer, weather]
    elif kind == "parallel":
        request = f"What will the weather be for the next {days} days in {city} and in {other}?"
        calls.append({"get_weather": {"city": [other], "days": [days]}})
    elif kind == "parallel_multiple":
        request, functions = f"{request} And set a timer of {days} minutes.", [timer, weather]
        calls.append({"set_timer": {"minutes": [days]}})
    elif kind == "irrelevance":
        request, functions, calls = f"Who wrote the song about {city} and the {days} bridges?", [timer], []
    return {
        "id": f"{kind}_{city}_{days}",
        "question": [[{"role": "user", "content": request}]],
        "function": functions,
        "ground_truth": calls,
    }


def _schema(name: str, description: str, arguments: dict[str, str]) -> Row:
    properties = {argument: {"type": kind, "description": argument} for argument, kind in arguments.items()}
    parameters = {"type": "dict", "properties": properties, "required": list(arguments)}
    return {"name": name, "description": description, "parameters": parameters}
