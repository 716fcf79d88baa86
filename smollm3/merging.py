"""Verbs that average models, and what they ask of the evaluation."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foundation.errors import UserError
from jobs.plan import Folders, default_run, typed
from jobs.profile import Profile
from smollm3.options import takes_recipes

if TYPE_CHECKING:
    from merge.recipe import Evaluation
    from merge.scores import Scores


class ScoringError(UserError):
    """A model could not be evaluated; the message says why, and how to repeat it."""


@click.command()
@takes_recipes("merge.yaml", several=False)
@click.option("--dry-run", is_flag=True, help="Check inputs, weights and disk space, then stop.")
def merge(profile: Profile, recipes: list[Path], overrides: list[str], dry_run: bool) -> None:
    """Average the APO checkpoints, then mix the soup with the mid-training model.

    RECIPE is the profile's merge.yaml unless given. Inputs that cannot give a sound model are refused before any work,
    and every element of the result is compared with the average in float64. An occupied output folder is refused.
    """
    from merge.recipe import load_merge_recipe
    from merge.run import dry_run as show
    from merge.run import run

    recipe = load_merge_recipe(recipes[0], overrides)
    if dry_run:
        show(recipe)
    else:
        run(recipe, suite_scores)


@click.command("merge-sweep")
@takes_recipes("merge.yaml", several=False)
def merge_sweep(profile: Profile, recipes: list[Path], overrides: list[str]) -> None:
    """Evaluate mixing weights from 0 to 1, and draw the curve that justifies one.

    RECIPE is the profile's merge.yaml unless given; its soup must have been written. Finished weights are not repeated.
    """
    from merge.recipe import load_merge_recipe
    from merge.sweep import run_sweep

    recipe = load_merge_recipe(recipes[0], overrides)
    run_sweep(recipe, suite_scores, suites_sha256(recipe.evaluation) if recipe.evaluation else "")


def suites_sha256(evaluation: "Evaluation") -> str:
    """Of all that the suites' scores depend on beside the model: recipe, data, code and package versions.

    Raises:
        UserError: for a recipe, suite or data that cannot be read.
    """
    from eval.fingerprint import suites_sha256
    from eval.recipe import load_eval_recipe

    return suites_sha256(load_eval_recipe(evaluation.recipe), evaluation.suites)


def suite_scores(model: Path, name: str, evaluation: "Evaluation", output: Path) -> "Scores":
    """A `merge.scores.Scorer`: main metrics of the evaluation's suites, as `smollm3 eval` gives them.

    In this process: the libraries take longer to import than a small model to evaluate. Finished tasks of the same
    model are not repeated.

    Raises:
        ScoringError: the evaluation failed.
    """
    from eval.evaluate import evaluate
    from eval.recipe import load_eval_recipe

    overrides = [f"output={output}"]
    try:
        results = evaluate(load_eval_recipe(evaluation.recipe, overrides), model, name, evaluation.suites)
    except UserError as error:
        suites = [f"--suite={suite}" for suite in evaluation.suites]
        words = ["eval", evaluation.recipe, f"--model={model}", f"--name={name}", *suites, *overrides]
        recipes = Path(evaluation.recipe).parent
        run = Path(os.environ.get("RUN") or default_run(recipes))
        command = typed(Folders(recipes, run), [words])
        raise ScoringError(f"{model} could not be evaluated. {error}\nTo repeat it: {command}") from None
    return {
        f"{suite.suite}/{task.task}": {"value": task.main_metric.value, "stderr": task.main_metric.stderr or 0.0}
        for suite in results
        for task in suite.tasks
    }
