"""Starts a recipe on this machine.

Checks everything that can be checked before a process starts, then becomes torchrun with as many processes as the
recipe's layout needs and the machine's cores shared among them. On a cluster, slurm/ does.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from foundation.launch import torchrun_command
from foundation.recipe import Recipe, load_recipe


def threads_per_process(recipe: Recipe) -> int:
    """Cores for each process; torchrun alone would give every process one, and no torchrun all of them."""
    return max(1, len(os.sched_getaffinity(0)) // recipe.parallelism.world_size)


def launch(path: Path, overrides: Sequence[str]) -> None:
    """Become torchrun, training the recipe; returns only if its last step is done already.

    Raises:
        UserError: before a process starts, for whatever would stop the run at its start.
    """
    recipe = load_recipe(path, overrides)
    from nanotron_ext.train.startup import preflight  # imports torch, which a wrong recipe should not cost

    checkpoints = preflight(recipe, recipe.parallelism.world_size).checkpoints
    if checkpoints and checkpoints[0].step >= recipe.last_step:
        print(f"{recipe.run_folder}: step {recipe.last_step} is done, nothing to do.")
        return
    command = torchrun_command(recipe.parallelism.world_size, "-m", "nanotron_ext.train", str(path), *overrides)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(recipe)))
    os.execv(command[0], command)
