"""Starts phases on this machine; on a cluster, slurm/ does.

One process per GPU or, without GPUs, per core, as far as the global batch can be divided.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from foundation.launch import torchrun_command
from foundation.recipe.loading import names_and_overrides
from foundation.secrets import for_jobs
from posttrain.recipe import PostTrainingRecipe, check_inputs, load_recipe


def process_count(recipes: list[PostTrainingRecipe], available: int) -> int:
    """The most processes that divide every recipe's step into equal numbers of passes."""
    passes = [recipe.optimizer.global_batch_size // recipe.optimizer.micro_batch_size for recipe in recipes]
    return max(count for count in range(1, available + 1) if all(number % count == 0 for number in passes))


def training_command(paths: Sequence[str | Path], overrides: Sequence[str]) -> tuple[list[str], Mapping[str, str]]:
    """The torchrun command that trains the recipes one after the other, and its environment.

    Raises:
        UserError: a wrong recipe, or one whose model or local data is neither there nor made by one before it.
    """
    recipes = [load_recipe(path, overrides) for path in paths]
    for recipe in recipes:
        if recipe.model.model_name_or_path not in {str(other.model_folder) for other in recipes}:
            check_inputs(recipe)
    cores = len(os.sched_getaffinity(0))
    available = cores
    if Path("/dev/nvidiactl").exists():
        import torch  # takes seconds to import

        available = torch.cuda.device_count() or cores
    processes = process_count(recipes, available)
    threads = str(max(1, cores // processes))  # torchrun alone would set 1
    overlays, values = names_and_overrides(overrides)
    options = [f"--with={overlay}" for overlay in overlays]
    command = torchrun_command(processes, "-m", "posttrain.train", *options, *map(str, paths), *values)
    return command, {"OMP_NUM_THREADS": threads, **for_jobs()}


def launch(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> NoReturn:
    """Become torchrun; see `training_command`."""
    command, environment = training_command(paths, overrides)
    os.execve(command[0], command, environment)
