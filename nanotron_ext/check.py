"""Preflight without a GPU: `python -m nanotron_ext.check RECIPE... [--data]`.

Validates recipes of every phase. With --data also what a pretraining run finds on disk: sources, tokenizer, checkpoint
to start from, run folder and space.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanotron_ext.errors import UserError
from nanotron_ext.recipe import Recipe, load_recipe


def loader_for(path: Path) -> Callable[[Path], Any]:
    """The function that reads a recipe of this file's phase, told by the file's name.

    Raises:
        UserError: for a name that belongs to no phase.
    """
    name = path.stem
    # Each room reads its own recipes; imported here, because this command alone knows all rooms.
    if name.startswith(("pretrain", "long_context")):
        return load_recipe
    if name.startswith(("midtrain", "sft", "apo")):
        from posttrain.recipe import load_recipe as load_posttraining_recipe

        return load_posttraining_recipe
    if name.startswith("merge"):
        from merge.recipe import load_merge_recipe

        return load_merge_recipe
    if name.startswith("eval"):
        from eval.recipe import load_eval_recipe

        return load_eval_recipe
    if name.startswith("synthetic"):
        from datapipes.synthetic.recipe import load_recipe as load_synthetic_recipe

        return load_synthetic_recipe
    phases = "pretrain, long_context, midtrain, sft, apo, synthetic, merge, eval"
    raise UserError(f"{path}: the name of a recipe starts with its phase, one of {phases}. Rename the file.")


def check(path: Path, with_data: bool) -> str:
    """One line on what the recipe says.

    Raises:
        UserError: when it cannot be used.
    """
    recipe = loader_for(path)(path)
    if not isinstance(recipe, Recipe):
        return "ok"
    if with_data:
        from nanotron_ext.train.startup import preflight  # imports torch

        preflight(recipe, recipe.parallelism.world_size)
    tokens = recipe.tokens_per_step * recipe.tokens.train_steps
    return (
        f"ok: {recipe.architecture.num_parameters():,} parameters, {recipe.parallelism.world_size} processes, "
        f"{recipe.tokens_per_step:,} tokens x {recipe.tokens.train_steps:,} steps = {tokens:.4g}, "
        f"stops at step {recipe.last_step:,}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nanotron_ext.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", type=Path, metavar="RECIPE")
    parser.add_argument("--data", action="store_true", help="also look at data, checkpoints and disk space")
    arguments = parser.parse_args()
    failures = 0
    for path in arguments.recipes:
        try:
            print(f"{path}: {check(path, arguments.data)}")
        except UserError as error:
            failures += 1
            print(error, file=sys.stderr)
    return 2 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
