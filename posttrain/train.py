"""`python -m posttrain.train RECIPE [section.key=value ...]`: mid-training, SFT or APO, whichever the recipe says."""

import argparse
import os
import sys
import warnings

from rich.console import Console


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 trained, 1 broke off, 2 could not start."""
    parser = argparse.ArgumentParser(
        prog="python -m posttrain.train",
        description="Post-train a model as a recipe says. A run that was interrupted goes on at its last checkpoint. "
        "Several GPUs: torchrun --nproc-per-node N -m posttrain.train RECIPE.",
    )
    parser.add_argument("recipe", help="YAML file, e.g. recipes/tiny/sft.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="e.g. optimizer.learning_rate=1e-4")
    parser.add_argument(
        "--preview", type=int, metavar="N", help="print the data report and N samples coloured by role and loss; stop"
    )
    options = parser.parse_args(arguments)

    warnings.filterwarnings("ignore", category=FutureWarning)
    if not sys.stderr.isatty():  # progress bars would fill log files
        os.environ |= {
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TQDM_DISABLE": "1",
        }
    from nanotron_ext.errors import UserError
    from posttrain.data import prepare_data
    from posttrain.progress import TrainingFailure
    from posttrain.recipe import load_recipe
    from posttrain.report import print_report, print_samples
    from posttrain.training import load_tokenizer, processes, train

    console = Console()
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        if options.preview is not None:
            tokenizer = load_tokenizer(recipe)
            data = prepare_data(recipe, tokenizer)
            print_samples(data.dataset, tokenizer, options.preview, recipe.data.max_length, console)
            print_report(data, console)
            return 0
        folder = train(recipe)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingFailure, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if processes().is_main_process:
        print(f"model: {folder}   metrics: {recipe.run_folder / 'metrics.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
