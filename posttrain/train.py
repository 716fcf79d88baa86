"""`python -m posttrain.train RECIPE ... [section.key=value ...]`: mid-training, SFT or APO, as each recipe says."""

import argparse
import os
import sys
import warnings
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:  # importing torch and TRL takes seconds, which --help and a wrong recipe should not cost
    from posttrain.recipe import PostTrainingRecipe


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 trained, 1 broke off, 2 could not start."""
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.train",
        description="Post-train a model as a recipe says, or several one after the other. A run that was interrupted "
        "goes on at its last checkpoint. Several processes: python -m posttrain.launch RECIPE.",
    )
    parser.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE | section.key=value",
        help="YAML files, and overrides of all of them: recipes/tiny/sft.yaml optimizer.learning_rate=1e-4",
    )
    parser.add_argument(
        "--preview", type=int, metavar="N", help="print the data report and N samples coloured by role and loss; stop"
    )
    options = parser.parse_args(arguments)
    overrides = [argument for argument in options.recipes if "=" in argument]
    paths = [argument for argument in options.recipes if "=" not in argument]
    if not paths:
        parser.error("no recipe given")

    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty():  # progress bars would fill log files
        os.environ |= {
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",
        }
    from nanotron_ext.errors import UserError
    from posttrain.progress import TrainingFailure
    from posttrain.recipe import check_inputs, load_recipe

    try:
        for recipe in [load_recipe(path, overrides) for path in paths]:
            check_inputs(recipe)
            if options.preview is not None:
                _preview(recipe, options.preview)
            else:
                _train(recipe)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingFailure, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _preview(recipe: "PostTrainingRecipe", samples: int) -> None:
    from posttrain.data import prepare_data
    from posttrain.report import print_report, print_samples
    from posttrain.training import load_tokenizer

    console = Console()
    tokenizer = load_tokenizer(recipe)
    data = prepare_data(recipe, tokenizer)
    print_samples(data.dataset, tokenizer, samples, recipe.data.max_length, console)
    print_report(data, console)


def _train(recipe: "PostTrainingRecipe") -> None:
    from posttrain.training import processes, train

    folder = train(recipe)
    if processes().is_main_process:
        print(f"model: {folder}   metrics: {recipe.run_folder / 'metrics.jsonl'}")


if __name__ == "__main__":
    sys.exit(main())
