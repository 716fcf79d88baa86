"""`python -m eval RECIPE --model FOLDER`: evaluate a transformers model on the recipe's suites."""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks import BENCHMARKS
from eval.data import EvalError, read_dataset
from eval.recipe import EvalRecipe, load_eval_recipe
from nanotron_ext.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    parser.add_argument("recipe", help="evaluation recipe, for example recipes/tiny/eval.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values that replace the recipe's")
    parser.add_argument("--model", required=True, help="folder of a transformers model with tokenizer")
    parser.add_argument("--name", help="name of the model in results and tables; default: the folder's")
    parser.add_argument("--suite", action="append", help="only this suite (may be repeated); default: all")
    parser.add_argument("--dry-run", action="store_true", help="resolve tasks, data and prompts, load no weights")
    parsed = parser.parse_intermixed_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    try:
        recipe = load_eval_recipe(parsed.recipe, parsed.overrides)
        evaluate(recipe, Path(parsed.model), parsed.name, parsed.suite, dry_run=parsed.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def evaluate(recipe: EvalRecipe, folder: Path, name: str | None, suites: list[str] | None, *, dry_run: bool) -> None:
    """Resolve all suites, then run them.

    Raises:
        EvalError: before any weights are loaded, if a suite, its data or the model is not usable.
    """
    chosen = suites or list(recipe.suites)
    unknown = [suite for suite in chosen if suite not in recipe.suites]
    if unknown:
        raise EvalError(f"There is no suite {unknown[0]!r} in this recipe; it has {', '.join(recipe.suites)}.")
    if not folder.is_dir():
        raise EvalError(f"There is no model folder {folder}. Train or export it first.")
    for suite in chosen:
        for task_name, task in recipe.suites[suite].tasks.items():
            dataset = BENCHMARKS[task.benchmark or task_name].dataset
            if dataset is not None:
                read_dataset(Path(recipe.data), dataset)
    # Imported here: lighteval takes seconds, and wrong recipes or missing data are reported without it.
    from transformers import AutoTokenizer

    from eval.model import TransformersModel
    from eval.runner import example_prompt, inspect_model, plan_suite, run_suite

    model = inspect_model(folder, name)
    if suites is None and model.chat_template_sha256 is None:
        talking = [suite for suite in chosen if recipe.suites[suite].needs_chat_template]
        chosen = [suite for suite in chosen if suite not in talking]
        print(f"left out, because {folder} has no chat template: {', '.join(talking) or 'nothing'}", flush=True)
    planned = {suite: plan_suite(recipe, suite, model) for suite in chosen}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for suite, tasks in planned.items():
        documents = sum(min(len(task.lighteval_task.eval_docs()), task.task.max_documents or 10**9) for task in tasks)
        print(f"suite {suite}: {len(tasks)} tasks, {documents} documents", flush=True)
        if dry_run:
            for entry in tasks:
                prompt = example_prompt(entry, tokenizer)
                print(f"  {entry.result_name} ({entry.dataset.edition}, {entry.dataset.revision}): ...{prompt[-90:]!r}")
    if dry_run:
        return
    get_backend = functools.cache(lambda: TransformersModel(folder, recipe.backend))
    for suite, tasks in planned.items():
        run_suite(recipe, suite, model, tasks, get_backend)
        print(f"written: {Path(recipe.output) / model.name / suite}.json", flush=True)


if __name__ == "__main__":
    sys.exit(main())
