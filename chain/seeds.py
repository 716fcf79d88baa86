"""The whole chain under several seeds: `python -m chain.seeds recipes/tiny --seeds 42 43 44` (make demo-seeds).

Every seed in the recipes, of weights, data order and sampling alike, is raised by as much as the given one lies above
that of pretraining, so the first of 42 43 44 is the demo itself. Each chain runs in RUN-seeds/<seed>, without plan,
benchmarks, sweep and report, and goes on where it was interrupted. Then `python -m report.seeds` writes
RUN-seeds/seeds.json, the effects that the report's story is about, per seed, with mean and interval, which the page of
`make report` shows.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from chain.__main__ import exit_status, run_chain
from chain.runner import only_one
from chain.steps import ChainError, steps_of
from foundation.recipe.loading import read_tree
from jobs.profile import Profile

RECIPES_FOLDER = "recipes"  # of a seed's folder; report/seeds.py reads them there
_NOT_PART_OF_THE_STORY = ("plan", "eval_base", "eval", "merge_sweep", "report")


def write_recipes(recipes: Path, seed: int, folder: Path) -> None:
    """Write a recipe into `folder` for each of `recipes`, which extends it and differs in its seeds only.

    Raises:
        UserError: when a recipe cannot be read.
    """
    shift = seed - read_tree(recipes / "pretrain.yaml")["general"]["seed"]
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(recipes.glob("*.yaml")):
        tree, own = read_tree(path), {"extends": str(path.resolve())}
        seeds = {
            section: {"seed": tree[section]["seed"] + shift}
            for section in ("general", "data")
            if isinstance(tree.get(section), dict) and "seed" in tree[section]
        }
        (folder / path.name).write_text(yaml.safe_dump(own | seeds, sort_keys=False), encoding="utf-8")


def run_seed(recipes: Path, seed: int, folder: Path) -> None:
    """Run what is not done of the chain under `seed` in `folder`.

    Raises:
        UserError: a wrong recipe, or a stage that failed.
        KeyboardInterrupt: after the running stage has stopped.
    """
    own = folder / RECIPES_FOLDER
    write_recipes(recipes, seed, own)
    os.environ.update(RUN=str(folder), RECIPES=str(own), PROFILE=recipes.name)  # for ${RUN} in recipes
    profile = Profile(own, folder)
    with only_one(folder):
        run_chain(profile, [step.name for step in steps_of(profile) if step.name not in _NOT_PART_OF_THE_STORY])


def run_seeds(recipes: Path, run: Path, seeds: Sequence[int]) -> None:
    """Run what is missing, and have the report measure the effects.

    Raises:
        UserError: fewer than two different seeds, a wrong recipe, or a stage that failed.
    """
    if len(set(seeds)) < 2:
        raise ChainError("An interval needs at least two different seeds: --seeds 42 43 44")
    folder = run.with_name(f"{run.name}-seeds")
    for number, seed in enumerate(seeds, 1):
        print(f"== [{number}/{len(seeds)}] seed {seed}", flush=True)
        run_seed(recipes, seed, folder / str(seed))
    command = [sys.executable, "-m", "report.seeds", str(folder), "--seeds", *map(str, seeds)]
    if subprocess.run(command, check=False).returncode:
        raise ChainError(f"The effects could not be measured: `{shlex.join(command[1:])}`, see above.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chain.seeds", description=__doc__)
    parser.add_argument("recipes", type=Path, help="folder of recipes, such as recipes/tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    options = parser.parse_args()
    run = Path(os.environ.get("RUN", f"runs/{options.recipes.name}"))
    return exit_status(lambda: run_seeds(options.recipes, run, options.seeds))


if __name__ == "__main__":
    sys.exit(main())
