"""The whole chain under several seeds: `python -m chain.seeds recipes/tiny --seeds 42 43 44` (make demo-seeds).

Every seed in the recipes, of weights, data order and sampling alike, is raised by as much as the given one lies above
that of pretraining, so the first of 42 43 44 is the demo itself. Each chain runs in RUN-seeds/<seed>, without plan,
benchmarks, sweep and report, and goes on where it was interrupted. RUN-seeds/seeds.json then holds the effects that the
report's story is about, per seed, with mean and interval; `make report` shows them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from chain.__main__ import exit_status, run_chain
from chain.runner import only_one
from chain.steps import ChainError, steps_of
from nanotron_ext.recipe.loading import read_tree
from report.collect import collect, seeds_file
from report.effects import Claim, measure
from report.intervals import t_interval
from slurm.jobs import Profile

_NOT_PART_OF_THE_STORY = ("plan", "eval_base", "merge_sweep", "report")


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


def run_seed(recipes: Path, seed: int, folder: Path) -> list[Claim]:
    """Run what is not done of the chain under `seed` in `folder`, and measure the effects.

    Raises:
        UserError: a wrong recipe, or a stage that failed.
        KeyboardInterrupt: after the running stage has stopped.
    """
    own = folder / "recipes"
    write_recipes(recipes, seed, own)
    os.environ.update(RUN=str(folder), RECIPES=str(own), PROFILE=recipes.name)  # for make, and for ${RUN} in recipes
    profile = Profile(own, folder)
    with only_one(folder):
        run_chain(profile, [step.name for step in steps_of(profile) if step.name not in _NOT_PART_OF_THE_STORY])
    return measure(collect(profile))


def gather(found: Mapping[int, Sequence[Claim]]) -> dict[str, Any]:
    """The typed JSON: every effect that all seeds have, with mean and 95 % interval (Student's t)."""
    by_seed = [
        {(claim.key, effect.name): effect for claim in claims for effect in claim.effects} for claims in found.values()
    ]
    effects = []
    for key, effect in by_seed[0].items():
        if all(key in other for other in by_seed):
            values = [other[key].value for other in by_seed]
            mean = t_interval(values)
            numbers = {"values": values, "mean": mean.value, "low": mean.low, "high": mean.high}
            effects.append({"claim": key[0], "effect": key[1], "unit": effect.unit, "null": effect.null, **numbers})
    return {
        "format": "chain-seeds/1",
        "seeds": list(found),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "effects": effects,
    }


def show(document: Mapping[str, Any], console: Console) -> None:
    seeds = document["seeds"]
    table = Table(title=f"Effects under the seeds {', '.join(map(str, seeds))}", box=box.SIMPLE, title_justify="left")
    for heading in ("claim", "effect", "unit", *map(str, seeds), "mean", "95 % interval"):
        table.add_column(heading, justify="left" if heading in ("claim", "effect", "unit") else "right")
    for effect in document["effects"]:
        numbers = [*(f"{value:.2f}" for value in effect["values"]), f"{effect['mean']:.2f}"]
        interval = f"[{effect['low']:.2f}, {effect['high']:.2f}]"
        table.add_row(effect["claim"], effect["effect"], effect["unit"], *numbers, interval)
    console.print(table)


def run_seeds(recipes: Path, run: Path, seeds: Sequence[int]) -> None:
    """Run what is missing, and write seeds.json.

    Raises:
        UserError: fewer than two different seeds, a wrong recipe, or a stage that failed.
    """
    if len(set(seeds)) < 2:
        raise ChainError("An interval needs at least two different seeds: --seeds 42 43 44")
    file = seeds_file(run)
    found = {}
    for number, seed in enumerate(seeds, 1):
        print(f"== [{number}/{len(seeds)}] seed {seed}", flush=True)
        found[seed] = run_seed(recipes, seed, file.parent / str(seed))
    document = gather(found)
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    show(document, Console())
    print(f"seeds: {file}; `make report` shows them.")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chain.seeds", description=__doc__)
    parser.add_argument("recipes", type=Path, help="folder of recipes, such as recipes/tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])
    options = parser.parse_args()
    run = Path(os.environ.get("RUN", f"runs/{options.recipes.name}"))
    return exit_status(lambda: run_seeds(options.recipes, run, options.seeds))


if __name__ == "__main__":
    sys.exit(main())
