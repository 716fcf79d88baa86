"""The whole chain under several seeds.

Every seed in the recipes, of weights, data order and sampling alike, is raised by as much as the given one lies above
that of pretraining, so the first of 42, 43, 44 is the demo itself. Each chain runs in RUN-seeds/<seed>, without plan,
benchmarks, sweep and report, and goes on where it was interrupted. `report.seeds` measures the effects.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from chain.run import run_chain
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


def run_seeds(recipes: Path, run: Path, seeds: Sequence[int]) -> Path:
    """Run what is missing; returns the folder with a run folder for each seed.

    Raises:
        UserError: fewer than two different seeds, a wrong recipe, or a stage that failed.
    """
    if len(set(seeds)) < 2:
        raise ChainError("An interval needs at least two different seeds: --seeds 42,43,44")
    folder = run.with_name(f"{run.name}-seeds")
    for number, seed in enumerate(seeds, 1):
        print(f"== [{number}/{len(seeds)}] seed {seed}", flush=True)
        run_seed(recipes, seed, folder / str(seed))
    return folder
