"""What a score depends on beside the model: code by what the task imports, everything else by its value."""

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from eval.benchmarks import Benchmark
from eval.recipe import EvalRecipe, Mode, Suite, Task
from foundation.code import Code

_VERSIONED = ("lighteval", "transformers", "torch", "datasets", "vllm")
_ROOT = Path(__file__).parents[1]
_BACKENDS = {"transformers": "eval/model.py", "vllm": "eval/vllm_model.py"}
# Their values count, below: another task's settings or a key that nobody sets changes no score.
_BY_VALUE = ("eval/benchmarks.py", "eval/recipe.py")
_OF_THE_BENCHMARK = ("family", "builder", "dataset", "generator", "arguments")


def task_settings(
    recipe: EvalRecipe, suite: Suite, task: Task, benchmark: Benchmark, mode: Mode, data_sha256: str
) -> dict[str, Any]:
    """Everything but the model that makes a task's score, for JSON."""
    judge = recipe.judge if benchmark.judged else None
    return {
        "data": data_sha256,
        "task": task.model_dump(exclude={"revision"}),
        "benchmark": {name: getattr(benchmark, name) for name in _OF_THE_BENCHMARK},
        "mode": mode,
        "sampling": suite.sampling.model_dump(),
        "backend": recipe.backend.model_dump(exclude={"batch_size", "gpu_memory_utilization"}),
        "judge": judge.model_dump() if judge else None,
        "versions": versions(),
        "code": code_sha256(_ROOT, code_files(benchmark, recipe.backend.engine, judged=judge is not None)),
    }


def fingerprint(settings: Any) -> str:
    """What has an equal one is not computed again."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=vars).encode()).hexdigest()


def code_files(benchmark: Benchmark, engine: str, *, judged: bool) -> tuple[str, ...]:
    """The files that make prompts, answers and scores; what they import belongs to them."""
    files = ["eval/asking.py", f"eval/tasks/{benchmark.family}.py", _BACKENDS[engine]]
    if benchmark.generator is not None:
        files.append(f"eval/{benchmark.generator}.py")
    return (*files, "eval/judge.py") if judged else tuple(files)


@cache
def code_sha256(root: Path, files: tuple[str, ...]) -> str:
    return Code(root).digest(*files, without=_BY_VALUE)


@cache  # every task asks, and each answer parses the packages' metadata
def versions() -> dict[str, str]:
    """Of the packages that scores may depend on, where installed."""
    found = {}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
