"""Code benchmarks. The model's program runs in the sandbox against the set's own tests; nothing else executes it."""

import ast
import base64
import json
import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any

from lighteval.metrics.utils.metric_utils import Metric

from eval.benchmarks import Benchmark
from eval.engine import Doc
from eval.recipe import Task
from eval.sandbox import Outcome, SandboxError, run_script, run_tests
from eval.sandbox_calls import CALLS
from eval.tasks.common import Grade, Row, ScoreAnswer, TaskPlan, answer_metric
from eval.tasks.programs import (
    CONTEST_HEADER,
    contest_assertion,
    extract_code,
    function_program,
    parsable,
    same_output,
    with_header,
)
from foundation.limits import decompress


def _pass_metric(score: ScoreAnswer) -> Metric:
    return answer_metric("pass@1", score, threads=os.cpu_count() or 1)


def _judged(run: Callable[[], Outcome]) -> Grade:
    """Whatever becomes of a program, it has a grade."""
    try:
        outcome = run()
    except SandboxError as error:
        print(f"warning: a program counts as wrong, because it could not be run: {error}", file=sys.stderr, flush=True)
        return Grade(0.0, str(error))
    return Grade(float(outcome.completed), outcome.reason)


def humaneval(benchmark: Benchmark, task: Task) -> TaskPlan:
    """Function completion with the extended tests; a reply may repeat the function."""

    def prompt(row: Row, task_name: str) -> Doc:
        reference = [f"{row['canonical_solution']}"]
        return Doc(query=row["prompt"], choices=reference, gold_index=0, task_name=task_name, specific=row)

    def score(answer: str, doc: Doc) -> Grade:
        row = doc.specific or {}
        name = row["entry_point"]
        code = function_program(row["prompt"], answer, name)
        # Some tests use what the prompt defines beside the function: theirs is the prompt's, not the answer's.
        tests = f"{row['prompt']}\n\n{name} = {CALLS}({name!r})\n\n{row['test']}\n\ncheck({name})\n"
        return _judged(lambda: run_tests(code, tests))

    stops = ["\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\nassert "]
    stops += ["\nimport ", "\nfrom ", "\n@", "\n```"]
    # Stop sequences cut completions after the function; chat answers are whole replies with a fenced block.
    return TaskPlan(prompt, [_pass_metric(score)], stops)


def mbpp(benchmark: Benchmark, task: Task) -> TaskPlan:
    def prompt(row: Row, task_name: str) -> Doc:
        query = f'"""\n{row["prompt"].strip()}\n{row["test_list"][0]}\n"""\n'
        definitions = (ast.FunctionDef, ast.ClassDef)
        names = [node.name for node in ast.parse(row["code"]).body if isinstance(node, definitions)]
        specific = {**row, "functions": names}
        return Doc(query=query, choices=[row["code"]], gold_index=0, task_name=task_name, specific=specific)

    def score(answer: str, doc: Doc) -> Grade:
        row = doc.specific or {}
        called = "".join(f"{name} = {CALLS}({name!r})\n" for name in row["functions"])
        code = parsable("", extract_code(answer, row["functions"]))
        return _judged(lambda: run_tests(code, f"{called}\n{row['test']}\n"))

    return TaskPlan(prompt, [_pass_metric(score)], ['\n"""', "\nassert ", "\nprint(", "\nif __name__", "\n```"])


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

    def score(answer: str, doc: Doc) -> Grade:
        row = doc.specific or {}
        code = with_header(CONTEST_HEADER, extract_code(answer))
        function = json.loads(row["metadata"]).get("func_name")
        for number, test in enumerate(contest_tests(row), 1):
            grade = _judged(partial(_contest_outcome, code, test, function))
            if grade.score < 1:
                return Grade(0.0, f"test {number}: {grade.reason}")
        return Grade(1.0)

    return TaskPlan(prompt, [_pass_metric(score)])


def _contest_outcome(code: str, test: dict[str, Any], function: str | None) -> Outcome:
    if test["testtype"] == "stdin":
        outcome = run_script(code, stdin=test["input"])
        if outcome.completed and not same_output(outcome.output, test["output"]):
            return Outcome(False, outcome.output, "another output than expected")
        return outcome
    arguments = [json.loads(line) for line in test["input"].split("\n") if line.strip()]
    call = f"{CALLS}('Solution().{function}')(*{arguments!r})"
    return run_tests(code, contest_assertion(call, json.loads(test["output"])))


def contest_tests(row: Row) -> list[dict[str, Any]]:
    """Public and private tests; the private ones are base64(zlib(pickle(JSON text))) or plain JSON."""
    tests: list[dict[str, Any]] = json.loads(row["public_test_cases"])
    private = row["private_test_cases"]
    try:
        hidden = json.loads(private)
    except json.JSONDecodeError:
        unpacked = decompress(base64.b64decode(private), "A row of private tests")
        hidden = json.loads(_TextUnpickler(BytesIO(unpacked)).load())
    return tests + list(hidden)


class _TextUnpickler(pickle.Unpickler):
    """Loads a pickled string and nothing that could execute."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"A test file asks for {module}.{name}; only text is expected.")
