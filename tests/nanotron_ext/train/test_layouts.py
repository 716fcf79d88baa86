"""The same training, whatever the layout."""

import pytest
import torch

from foundation.recipe import Recipe
from nanotron_ext.engine import ParallelContext, dist, initialize_distributed
from nanotron_ext.train import buckets
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import random_batch, small_recipe

STEPS = 20


def curve(recipe: Recipe) -> list[tuple[float, float]]:
    buckets.BUCKET_BYTES = 1 << 14  # about one per layer
    launch = initialize_distributed()
    p = recipe.parallelism
    context = ParallelContext(p.tp, p.pp, p.dp)
    state = TrainState(recipe, context, launch.device)
    results = []
    for step in range(1, STEPS + 1):
        result = state.train_step(random_batch(recipe, step, dist.get_rank(context.dp_pg)))
        results.append((result.loss, result.grad_norm))
    return results


def recipe_for(dp: int, accumulation: int, **parallelism: object) -> Recipe:
    """Eight samples a step, split as asked."""
    zero = int(parallelism.pop("zero_stage", 0))  # type: ignore[call-overload]
    return small_recipe(
        parallelism={"dp": dp, "replica_check_interval": 1, **parallelism},  # which must not find anything
        optimizer={"zero_stage": zero},
        tokens={"micro_batch_size": 8 // dp // accumulation, "batch_accumulation_per_replica": accumulation},
    )


@pytest.fixture(scope="module")
def single_process_curve() -> list[tuple[float, float]]:
    [single] = run_ranks(curve, 1, recipe_for(dp=1, accumulation=1))
    assert single[-1][0] < single[0][0] - 0.05, "the reference must learn something, or equality means nothing"
    return single


LAYOUTS = {
    "accumulation": {"dp": 1, "accumulation": 8},
    "tp2-async": {"dp": 1, "accumulation": 2, "tp": 2},
    "tp2-sync": {"dp": 1, "accumulation": 2, "tp": 2, "tp_linear_async_communication": False},
    "tp2-all-reduce": {"dp": 1, "accumulation": 2, "tp": 2, "tp_mode": "ALL_REDUCE"},
    "pp2-1f1b": {"dp": 1, "accumulation": 4, "pp": 2},
    "pp2-afab": {"dp": 1, "accumulation": 4, "pp": 2, "pp_engine": "afab"},
    "pp4-uneven": {"dp": 1, "accumulation": 4, "pp": 3, "layers_per_stage": [1, 2, 1]},
    "dp2-zero0": {"dp": 2, "accumulation": 2},
    "dp2-zero1": {"dp": 2, "accumulation": 2, "zero_stage": 1},
    "recompute": {"dp": 1, "accumulation": 2, "pp": 2, "recompute_layer": True},
    "tp2-pp2-dp2-zero1": {"dp": 2, "accumulation": 2, "tp": 2, "pp": 2, "zero_stage": 1},
    "tp2-pp2-dp2-all-reduce": {"dp": 2, "accumulation": 2, "tp": 2, "pp": 2, "tp_mode": "ALL_REDUCE"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_curve_is_the_single_process_curve(layout: str, single_process_curve: list[tuple[float, float]]) -> None:
    recipe = recipe_for(**LAYOUTS[layout])
    curves = run_ranks(curve, recipe.parallelism.world_size, recipe)
    for of_rank in curves:
        torch.testing.assert_close(torch.tensor(of_rank), torch.tensor(single_process_curve), rtol=1e-4, atol=0)
