"""Code benchmarks. The model's program runs in the sandbox against the set's own tests; nothing else executes it."""

import base64
import json
import os
import pickle
import re
import zlib
from io import BytesIO
from typing import Any

from lighteval.metrics.utils.metric_utils import Metric

from eval.benchmarks import Benchmark
from eval.engine import Doc
from eval.recipe import Task
from eval.sandbox import run_python
from eval.tasks.common import Row, ScoreAnswer, TaskPlan, answer_metric

_FENCE = re.compile(r"```(?:python|py)?\s*\n")


def extract_code(answer: str) -> str:
    """The last fenced block, or the whole answer if there is none."""
    block, position = answer, 0
    while (opening := _FENCE.search(answer, position)) and (end := answer.find("```", opening.end())) >= 0:
        block, position = answer[opening.end() : end], end + len("```")
    return block


def _pass_metric(score: ScoreAnswer) -> Metric:
    return answer_metric("pass@1", score, threads=os.cpu_count() or 1)


def humaneval(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Function completion with the extended tests; a reply that repeats the function is taken as it is."""

    def prompt(row: Row, task_name: str) -> Doc:
        reference = [f"{row['canonical_solution']}"]
        return Doc(query=row["prompt"], choices=reference, gold_index=0, task_name=task_name, specific=row)

    def score(answer: str, doc: Doc) -> float:
        row = doc.specific or {}
        code = extract_code(answer)
        if f"def {row['entry_point']}(" not in code:
            code = row["prompt"] + code
        return float(run_python(f"{code}\n\n{row['test']}\n\ncheck({row['entry_point']})\n").completed)

    stops = ["\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\nassert "]
    # Stop sequences cut completions after the function; chat answers are whole replies with a fenced block.
    return TaskPlan(prompt, [_pass_metric(score)], stops)


def mbpp(benchmark: Benchmark, task: Task) -> TaskPlan:
    def prompt(row: Row, task_name: str) -> Doc:
        query = f'"""\n{row["prompt"].strip()}\n{row["test_list"][0]}\n"""\n'
        return Doc(query=query, choices=[row["code"]], gold_index=0, task_name=task_name, specific=row)

    def score(answer: str, doc: Doc) -> float:
        return float(run_python(f"{extract_code(answer)}\n\n{(doc.specific or {})['test']}\n").completed)

    return TaskPlan(prompt, [_pass_metric(score)], ['\n"""', "\nassert ", "\nprint(", "\nif __name__"])


def livecodebench(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Contest problems: programs that read standard input, or methods of a class Solution."""

    def prompt(row: Row, task_name: str) -> Doc:
        form = (
            f"Complete this code:\n```python\n{row['starter_code']}\n```"
            if row["starter_code"]
            else "Read the input from standard input and print the answer."
        )
        query = f"{row['question_content']}\n\n{form}\nReply with one Python program in a ```python block."
        return Doc(query=query, choices=[""], gold_index=0, task_name=task_name, specific=row)

    def score(answer: str, doc: Doc) -> float:
        row = doc.specific or {}
        code = extract_code(answer)
        function = json.loads(row["metadata"]).get("func_name")
        return float(all(_passes(code, test, function) for test in contest_tests(row)))

    return TaskPlan(prompt, [_pass_metric(score)])


def _passes(code: str, test: dict[str, Any], function: str | None) -> bool:
    if test["testtype"] == "stdin":
        outcome = run_python(code, stdin=test["input"])
        return outcome.completed and outcome.output.split() == test["output"].split()
    arguments = [json.loads(line) for line in test["input"].splitlines() if line.strip()]
    call = f"assert Solution().{function}(*{arguments!r}) == {json.loads(test['output'])!r}"
    header = "from typing import *\nimport collections, functools, heapq, itertools, math, bisect, re, string\n"
    return run_python(f"{header}{code}\n{call}\n").completed


def contest_tests(row: Row) -> list[dict[str, Any]]:
    """Public and private tests; the private ones are base64(zlib(pickle(JSON text))) or plain JSON."""
    tests: list[dict[str, Any]] = json.loads(row["public_test_cases"])
    private = row["private_test_cases"]
    try:
        hidden = json.loads(private)
    except json.JSONDecodeError:
        hidden = json.loads(_TextUnpickler(BytesIO(zlib.decompress(base64.b64decode(private)))).load())
    return tests + list(hidden)


class _TextUnpickler(pickle.Unpickler):
    """Loads a pickled string and nothing that could execute."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"A test file asks for {module}.{name}; only text is expected.")
