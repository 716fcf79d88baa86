"""The data of phases as it would be trained on, without training."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from foundation.errors import UserError
from posttrain.quiet import quiet_libraries
from posttrain.recipe import PostTrainingRecipe, check_inputs, load_recipe


def preview(paths: Sequence[str | Path], overrides: Sequence[str], samples: int, console: Console) -> None:
    """Print each recipe's data report and `samples` samples coloured by role and by loss.

    Raises:
        UserError: a wrong recipe, before any data is read; absent inputs, or data that cannot be read.
    """
    recipes = [load_recipe(path, overrides) for path in paths]
    for recipe in recipes:
        check_inputs(recipe)
    quiet_libraries()
    try:
        for recipe in recipes:
            _preview(recipe, samples, console)
    except OSError as error:  # a set or model of the hub that cannot be had
        raise UserError(str(error)) from error


def _preview(recipe: PostTrainingRecipe, samples: int, console: Console) -> None:
    from posttrain.data import prepare_data  # with torch and TRL, which take seconds
    from posttrain.data_report import print_report, print_samples
    from posttrain.training import load_tokenizer

    tokenizer = load_tokenizer(recipe)
    data = prepare_data(recipe, tokenizer)
    print_samples(data.dataset, tokenizer, samples, recipe.data.max_length, console)
    print_report(data, console)
