"""The host waits for the device once in a step.

The model lives on torch's `meta` device, whose tensors have no values: whatever would need one on the host (`.item()`,
`.tolist()`, a boolean index, `if tensor:`) raises there, as it would make the host wait on a GPU.
"""

import traceback
from typing import Any

import pytest
import torch

from foundation.recipe import Recipe
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import random_batch, small_recipe


def first_wait(recipe: Recipe) -> str:
    """The source line that asks for a value first; then the rest of the step, which must not ask at all."""
    initialize_distributed()
    state = TrainState(recipe, ParallelContext(1, 1, 1), torch.device("meta"))
    try:
        state.train_step(random_batch(recipe, 1))
    except NotImplementedError as error:
        state.optimizer.step(1e-3, 2.0)  # above the limit, so that it clips
        return traceback.extract_tb(error.__traceback__)[-1].line or ""
    return "none"


@pytest.mark.parametrize(
    "parallelism", [{}, {"recompute_layer": True}, {"recompute_mlp": True, "loss_chunk_tokens": 5}], ids=str
)
def test_one_wait_at_the_end_of_the_backward(parallelism: dict[str, Any]) -> None:
    recipe = small_recipe(
        parallelism=parallelism,
        model={"dtype": "bfloat16"},
        tokens={"micro_batch_size": 2, "batch_accumulation_per_replica": 2},
        optimizer={"torch_adam_is_fused": False},  # torch has no fused AdamW for this device
    )
    [line] = run_ranks(first_wait, 1, recipe)
    assert line.endswith("torch.cat([norm[None], sums]).tolist()")
