"""Start a recipe on this machine: `python -m nanotron_ext.launch RECIPE.yaml [section.key=value ...]`.

Checks everything that can be checked before a process starts, then becomes torchrun with as many processes as the
recipe's layout needs and the machine's cores shared among them. On a cluster, slurm/ does.
"""

import argparse
import os
import sys
from typing import NoReturn

from foundation.errors import UserError
from foundation.launch import torchrun_command
from foundation.recipe import Recipe, load_recipe


def threads_per_process(recipe: Recipe) -> int:
    """Cores for each process; torchrun alone would give every process one, and no torchrun all of them."""
    return max(1, len(os.sched_getaffinity(0)) // recipe.parallelism.world_size)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nanotron_ext.launch", description=__doc__)
    parser.add_argument("recipe", help="YAML file, for example recipes/tiny/pretrain_stage1.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="replace single values")
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        from nanotron_ext.train.startup import preflight  # imports torch, which a wrong recipe should not cost

        checkpoints = preflight(recipe, recipe.parallelism.world_size).checkpoints
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if checkpoints and checkpoints[0].step >= recipe.last_step:
        print(f"{recipe.run_folder}: step {recipe.last_step} is done, nothing to do.")
        return 0
    program = ("-m", "nanotron_ext.train", arguments.recipe, *arguments.overrides)
    command = torchrun_command(recipe.parallelism.world_size, *program)
    return _become_torchrun(command, threads_per_process(recipe))


def _become_torchrun(command: list[str], threads: int) -> NoReturn:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
