"""Starts recipes on this machine.

Checks everything that can be checked before a process starts, then becomes torchrun with as many processes as the
recipe's layout needs and the machine's cores shared among them. On a cluster, slurm/ does.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from foundation.launch import run_and_pass_on_signals, torchrun_command
from foundation.recipe import Recipe, load_recipe
from foundation.secrets import for_jobs


def threads_per_process(recipe: Recipe) -> int:
    """Cores for each process; torchrun alone would give every process one, and no torchrun all of them."""
    return max(1, len(os.sched_getaffinity(0)) // recipe.parallelism.world_size)


def launch(recipes: Sequence[Path], overrides: Sequence[str]) -> None:
    """Train recipes one after the other; the process becomes torchrun for the last one.

    Raises:
        UserError: for whatever would stop a run at its start, before its processes start.
        SystemExit: with the exit code of a run that did not finish.
    """
    loaded = [load_recipe(path, overrides) for path in recipes]
    from nanotron_ext.train.startup import preflight  # imports torch, which a wrong recipe should not cost

    for path, recipe in zip(recipes, loaded, strict=True):
        checkpoint = preflight(recipe, recipe.parallelism.world_size).checkpoint
        if checkpoint is not None and checkpoint.step >= recipe.last_step:
            print(f"{recipe.run_folder}: step {recipe.last_step} is done, nothing to do.")
            continue
        command = torchrun_command(recipe.parallelism.world_size, "-m", "nanotron_ext.train", str(path), *overrides)
        environment = {"OMP_NUM_THREADS": str(threads_per_process(recipe))} | for_jobs()
        if recipe is loaded[-1]:
            os.execve(command[0], command, environment)
        if code := run_and_pass_on_signals(command, environment):
            raise SystemExit(code)
