"""Evaluate a transformers model on the recipe's suites."""

import functools
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from eval.benchmarks import BENCHMARKS
from eval.data import chosen_suites
from eval.errors import EvalError
from eval.local_data import read_dataset
from eval.recipe import EvalRecipe
from eval.results import SuiteResult
from foundation.pretrained import load_tokenizer

if TYPE_CHECKING:
    from eval.planning import PlannedTask


def evaluate(
    recipe: EvalRecipe, folder: Path, name: str | None, suites: Sequence[str] | None, *, dry_run: bool = False
) -> list[SuiteResult]:
    """Resolve all suites (default: every suite that the model can take), then run them without a network.

    What is finished is not repeated. `name`: of the model in results and tables, default the folder's. A dry run shows
    tasks and prompts, and has no results.

    Raises:
        EvalError: before any weights are loaded, if a suite, its data or the model is not usable.
    """
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # read when the libraries are imported
        os.environ.setdefault(variable, "1")
    chosen = chosen_suites(recipe, suites)
    if not folder.is_dir():
        raise EvalError(f"There is no model folder {folder}. Train or export it first.")
    for suite in chosen:
        for task_name, task in recipe.suites[suite].tasks.items():
            dataset = BENCHMARKS[task.benchmark or task_name].dataset
            if dataset is not None:
                read_dataset(Path(recipe.data), dataset)
    if recipe.backend.engine == "vllm" and find_spec("vllm") is None:
        raise EvalError(
            f"backend.engine is vllm, but the package vllm is not installed beside {sys.executable}. "
            "`make setup-vllm` makes .venv-vllm, which has it and the evaluation: use that environment's command "
            "(.venv-vllm/bin/smollm3, or EVAL_PYTHON in slurm/site.sh), or set backend.engine=transformers."
        )
    # Imported here: lighteval takes seconds, and wrong recipes or missing data are reported without it.
    from eval.model import LocalModel, TransformersModel
    from eval.planning import inspect_model, plan_suite
    from eval.runner import run_suite
    from eval.vllm_model import VllmModel

    model = inspect_model(folder, name)
    if suites is None and model.chat_template_sha256 is None:
        talking = [suite for suite in chosen if recipe.suites[suite].needs_chat_template]
        chosen = [suite for suite in chosen if suite not in talking]
        print(f"left out, because {folder} has no chat template: {', '.join(talking) or 'nothing'}", flush=True)
    planned = {suite: plan_suite(recipe, suite, model) for suite in chosen}
    _show_plan(planned, folder, prompts=dry_run)
    if dry_run:
        return []

    @functools.cache
    def get_backend() -> LocalModel:
        return (VllmModel if recipe.backend.engine == "vllm" else TransformersModel)(folder, recipe.backend)

    results = []
    for suite, tasks in planned.items():
        results.append(run_suite(recipe, suite, model, tasks, get_backend))
        print(f"written: {Path(recipe.output) / model.name / suite}.json", flush=True)
    _write_tables(Path(recipe.output))
    return results


def _show_plan(planned: "dict[str, list[PlannedTask]]", folder: Path, *, prompts: bool) -> None:
    from eval.planning import example_prompt

    tokenizer = load_tokenizer(folder)
    for suite, tasks in planned.items():
        documents = sum(min(len(task.lighteval_task.eval_docs()), task.task.max_documents or 10**9) for task in tasks)
        print(f"suite {suite}: {len(tasks)} tasks, {documents} documents", flush=True)
        for task in tasks if prompts else ():
            prompt = example_prompt(task, tokenizer)
            print(f"  {task.result_name} ({task.dataset.edition}, {task.dataset.revision}): ...{prompt[-90:]!r}")


def _write_tables(output: Path) -> None:
    from eval.tables import TableError, build_table, read_results, write_tables

    try:
        write_tables(output, build_table(read_results(output)))
    except TableError as error:  # older results beside these; the new ones are written
        print(f"no table of all models: {error}", flush=True)
    else:
        print(f"written: {output / 'table.md'} and table.html, with all models evaluated so far", flush=True)
