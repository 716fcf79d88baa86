"""Every checkpoint in every layout: `make layouts`.

A small model is saved after two steps in each of the layouts {1, 2} tp x {1, 2} pp x {1, 2} dp, with ZeRO 0 and 1, and
each checkpoint is loaded into each layout. Masters and Adam state must equal those that were saved bit for bit, the
model's parameters the masters in its dtype, and the next 10 losses those of the run that saved, within 1e-5.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointReader, resolve_checkpoint
from nanotron_ext.engine import ParallelContext, dist, initialize_distributed
from nanotron_ext.train.persistence import load_checkpoint
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import random_batch, save_checkpoint
from tests.nanotron_ext.test_checkpoint import recipe_for, whole_state

LAYOUTS = [
    {"tp": tp, "pp": pp, "dp": dp, "zero_stage": zero}
    for tp, pp, dp, zero in itertools.product((1, 2), (1, 2), (1, 2), (0, 1))
]
SAVED_STEP, LAST_STEP = 2, 12


def name_of(layout: dict[str, int]) -> str:
    return "tp{tp}-pp{pp}-dp{dp}-zero{zero_stage}".format(**layout)


def losses(state: TrainState, first_step: int, last_step: int) -> list[float]:
    rank = dist.get_rank(state.context.dp_pg)
    steps = range(first_step, last_step + 1)
    return [state.train_step(random_batch(state.recipe, step, rank)).loss for step in steps]


def save(recipe: Recipe) -> list[float]:
    """Train, save, and go on; the losses behind the checkpoint."""
    device, p = initialize_distributed().device, recipe.parallelism
    state = TrainState(recipe, ParallelContext(p.tp, p.pp, p.dp), device)
    losses(state, 1, SAVED_STEP)
    save_checkpoint(state, SAVED_STEP)
    return losses(state, SAVED_STEP + 1, LAST_STEP)


def load_each(recipes: list[Recipe], sources: list[Path]) -> list[list[float]]:
    """Into one layout: load each source, save it again as the recipe's run, and go on."""
    device, p = initialize_distributed().device, recipes[0].parallelism
    context = ParallelContext(p.tp, p.pp, p.dp)
    found = []
    for recipe, source in zip(recipes, sources, strict=True):
        state = TrainState(recipe, context, device)
        load_checkpoint(state, CheckpointReader(resolve_checkpoint(source)))
        state.optimizer.wait_for_weights()
        for group in state.optimizer.groups:
            for bucket in group.buckets:
                assert torch.equal(group.params[bucket.shard], group.master[bucket.local].to(group.params.dtype))
        save_checkpoint(state, SAVED_STEP)
        found.append(losses(state, SAVED_STEP + 1, LAST_STEP))
    return found


def problems_of_reader(root: Path, reader: dict[str, int], expected: dict[str, list[float]]) -> list[str]:
    """What differs when this layout reads the checkpoints of all."""
    runs = {name: recipe_for(reader, f"{name}-in-{name_of(reader)}", root) for name in expected}
    sources = [root / name for name in expected]
    found = run_ranks(load_each, reader["tp"] * reader["pp"] * reader["dp"], list(runs.values()), sources)[0]
    problems = []
    for (name, wanted), got in zip(expected.items(), found, strict=True):
        written, rewritten = whole_state(root / name), whole_state(runs[name].run_folder)
        shutil.rmtree(runs[name].run_folder)
        if written.keys() != rewritten.keys() or not all(torch.equal(written[key], rewritten[key]) for key in written):
            problems.append(f"{name} in {name_of(reader)}: the state differs")
        worst = max(abs(new - old) / old for new, old in zip(got, wanted, strict=True))
        if worst > 1e-5:
            problems.append(f"{name} in {name_of(reader)}: a loss differs by {worst:.1e}")
    return problems


def main() -> int:
    argparse.ArgumentParser(prog="python -m tests.layouts", description=__doc__).parse_args()
    root, started = Path(tempfile.mkdtemp(prefix="layouts-")), time.monotonic()
    expected = {}
    for layout in LAYOUTS:
        recipe = recipe_for(layout, name_of(layout), root)
        expected[name_of(layout)] = run_ranks(save, recipe.parallelism.world_size, recipe)[0]
    problems: list[str] = []
    for layout in LAYOUTS:
        of_reader = problems_of_reader(root, layout, expected)
        problems += of_reader
        print(f"{name_of(layout)} read {len(expected) - len(of_reader)} of {len(expected)}", *of_reader, flush=True)
    pairs = len(LAYOUTS) ** 2
    minutes = (time.monotonic() - started) / 60
    print(f"{pairs - len(problems)} of {pairs} pairs of layouts agree, in {minutes:.1f} minutes.")
    shutil.rmtree(root)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
