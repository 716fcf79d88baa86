"""Start phases on this machine: `python -m posttrain.launch RECIPE ... [section.key=value ...]`.

Becomes torchrun with one process per GPU or, without GPUs, per core, as far as the global batch can be divided. On a
cluster, slurm/ does.
"""

import argparse
import os
import sys
from pathlib import Path

from foundation.errors import UserError
from foundation.launch import torchrun_command
from posttrain.recipe import PostTrainingRecipe, check_inputs, load_recipe


def process_count(recipes: list[PostTrainingRecipe], available: int) -> int:
    """The most processes that divide every recipe's step into equal numbers of passes."""
    passes = [recipe.optimizer.global_batch_size // recipe.optimizer.micro_batch_size for recipe in recipes]
    return max(count for count in range(1, available + 1) if all(number % count == 0 for number in passes))


def main(arguments: list[str] | None = None) -> int:
    """Becomes torchrun; returns only if nothing could be started."""
    parser = argparse.ArgumentParser(prog="python -m posttrain.launch", description=__doc__)
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="RECIPE | section.key=value",
        help="YAML files, trained one after the other, and overrides of all of them",
    )
    arguments = parser.parse_args(arguments).arguments
    overrides = [argument for argument in arguments if "=" in argument]
    paths = [argument for argument in arguments if "=" not in argument]
    if not paths:
        parser.error("no recipe given")
    try:
        recipes = [load_recipe(path, overrides) for path in paths]
        for recipe in recipes:
            if recipe.model.model_name_or_path not in {str(other.model_folder) for other in recipes}:
                check_inputs(recipe)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0))
    available = cores
    if Path("/dev/nvidiactl").exists():
        import torch  # takes seconds to import

        available = torch.cuda.device_count() or cores
    processes = process_count(recipes, available)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))  # torchrun alone would set 1
    command = torchrun_command(processes, "-m", "posttrain.train", *arguments)
    return os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
