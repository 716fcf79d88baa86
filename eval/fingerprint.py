"""What a score depends on beside the model: code by what the task imports, everything else by its value."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from eval.benchmarks import BENCHMARKS, Benchmark
from eval.data import chosen_suites
from eval.local_data import read_dataset
from eval.recipe import EvalRecipe, Mode, Suite, Task
from foundation.code import Code
from foundation.fingerprint import Fingerprint, fingerprint, sha256, versions
from foundation.project import ROOT

VERSIONED = ("lighteval", "transformers", "torch", "datasets", "nltk", "sacrebleu", "langdetect", "vllm")
# Left out of the code: what counts by value, in `task_values`, so that another task's settings or a key that nobody
# sets change no score; and errors, which only end an evaluation.
LEFT_OUT = ("eval/benchmarks.py", "eval/recipe.py", "eval/errors.py", "foundation/errors.py")
_BACKENDS = {"transformers": "eval/model.py", "vllm": "eval/vllm_model.py"}
_OF_THE_BENCHMARK = ("family", "builder", "dataset", "generator", "arguments")


def task_fingerprint(
    recipe: EvalRecipe, suite: Suite, task: Task, benchmark: Benchmark, mode: Mode, **others: Any
) -> Fingerprint:
    """Of one task's score in one mode. `others`: kind -> content that only the caller has, such as data and model."""
    contents = {
        "recipe": {**task_values(recipe, suite, task, benchmark), "mode": mode},
        "code": code_sha256(ROOT, code_files(benchmark, recipe.backend.engine, judged=_is_judged(recipe, benchmark))),
        "versions": versions(VERSIONED),
    }
    return fingerprint(contents | others)


def suites_sha256(recipe: EvalRecipe, suites: Sequence[str]) -> str:
    """Of all that the scores of the `suites` depend on beside the model; reads their data.

    Raises:
        EvalError: for a suite that the recipe does not have, or data that is not there.
    """
    totals = []
    for suite in (recipe.suites[name] for name in chosen_suites(recipe, suites)):
        for name, task in suite.tasks.items():
            benchmark = BENCHMARKS[task.benchmark or name]
            dataset = benchmark.dataset
            data = "" if dataset is None else read_dataset(Path(recipe.data), dataset).sha256
            totals += [task_fingerprint(recipe, suite, task, benchmark, mode, data=data).total for mode in suite.modes]
    return sha256(totals)


def task_values(recipe: EvalRecipe, suite: Suite, task: Task, benchmark: Benchmark) -> dict[str, Any]:
    """What the recipe and the list of benchmarks say that makes a task's score."""
    return {
        "task": task.model_dump(exclude={"revision"}),
        "benchmark": {name: getattr(benchmark, name) for name in _OF_THE_BENCHMARK},
        "sampling": suite.sampling.model_dump(),
        "backend": recipe.backend.model_dump(exclude={"batch_size", "gpu_memory_utilization"}),
        "judge": recipe.judge.model_dump() if recipe.judge and benchmark.judged else None,
    }


def suite_values(recipe: EvalRecipe, suites: Sequence[str]) -> dict[str, Any]:
    """All tasks of the `suites`: what the recipe and the list of benchmarks say of them."""
    return {
        name: {"modes": recipe.suites[name].modes}
        | {
            key: task_values(recipe, recipe.suites[name], task, BENCHMARKS[task.benchmark or key])
            for key, task in recipe.suites[name].tasks.items()
        }
        for name in suites
    }


def suite_code(recipe: EvalRecipe, suites: Sequence[str]) -> tuple[str, ...]:
    """The files that make the scores of the `suites`; what they import belongs to them, but for LEFT_OUT."""
    found: set[str] = set()
    for suite in (recipe.suites[name] for name in suites):
        for benchmark in (BENCHMARKS[task.benchmark or key] for key, task in suite.tasks.items()):
            found |= set(code_files(benchmark, recipe.backend.engine, judged=_is_judged(recipe, benchmark)))
    return tuple(sorted(found))


def _is_judged(recipe: EvalRecipe, benchmark: Benchmark) -> bool:
    return benchmark.judged and recipe.judge is not None


def code_files(benchmark: Benchmark, engine: str, *, judged: bool) -> tuple[str, ...]:
    """The files that make prompts, answers and scores; what they import belongs to them."""
    files = ["eval/asking.py", f"eval/tasks/{benchmark.family}.py", _BACKENDS[engine]]
    if benchmark.generator is not None:
        files.append(f"eval/{benchmark.generator}.py")
    return (*files, "eval/judge.py") if judged else tuple(files)


@cache
def code_sha256(root: Path, files: tuple[str, ...]) -> str:
    return Code(root).digest(*files, without=LEFT_OUT)
