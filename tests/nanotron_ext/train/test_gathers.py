"""ZeRO-1's new weights are gathered beside the next forward, and no layer computes with an old one."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.recipe import Recipe
from nanotron_ext.engine import ParallelContext, dist, initialize_distributed
from nanotron_ext.train import buckets, gathers, heartbeat
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import random_batch, save_checkpoint, small_recipe

STEPS = 6
Curve = tuple[list[float], list[float]]


def recipe_for(zero_stage: int, runs: Path, dtype: str = "float32", compile: bool = False, **layout: Any) -> Recipe:
    """Without clipping, whose norm is summed in another order, two replicas' sums are equal bit for bit."""
    dp = layout.setdefault("dp", 1)
    return small_recipe(
        general={"runs_path": str(runs)},
        parallelism={"compile": compile, "replica_check_interval": 2, **layout},
        model={"dtype": dtype},
        model_config={"tie_word_embeddings": True},
        optimizer={"zero_stage": zero_stage, "clip_grad": None},
        tokens={"micro_batch_size": 2, "batch_accumulation_per_replica": 4 // dp},
    )


class Late:
    """A gather that brings nothing before somebody waits for it, as the slowest network would."""

    def __init__(self, gather: Any, whole: torch.Tensor, shard: torch.Tensor, group: Any) -> None:
        self._gather = lambda: gather(whole, shard, group=group)

    def wait(self) -> None:
        self._gather()


def losses(recipe: Recipe, is_late: bool) -> Curve:
    """Of training steps, and of evaluations behind some of them; in the middle of it a save."""
    buckets.BUCKET_BYTES = 1 << 13  # several buckets, none of which is one layer
    p = recipe.parallelism
    device = initialize_distributed().device
    state = TrainState(recipe, ParallelContext(p.tp, p.pp, p.dp, p.context_parallel_size), device)
    if is_late:
        gather = dist.all_gather_into_tensor

        def late(whole: torch.Tensor, shard: torch.Tensor, group: Any, async_op: bool = False) -> Any:
            if async_op and whole.is_floating_point():  # not the hashes of what replicas hold
                return Late(gather, whole, shard, group)
            return gather(whole, shard, group=group, async_op=async_op)

        gathers.dist.all_gather_into_tensor = late
    trained, evaluated = [], []
    for step in range(1, STEPS + 1):
        trained.append(state.train_step(random_batch(recipe, step, state.context.replica)).loss)
        if p.pp == 1 and step % 2:
            evaluated.append(state.evaluate(random_batch(recipe, 99, state.context.replica).micro_batches))
        if step == 4:
            save_checkpoint(state, step)
    state.optimizer.wait_for_weights()
    return trained, evaluated


LAYOUTS: dict[str, dict[str, Any]] = {
    "dp2": {"dp": 2},
    "dp2-bfloat16": {"dp": 2, "dtype": "bfloat16"},
    "cp2": {"context_parallel_size": 2},
    "dp2-tp2": {"dp": 2, "tp": 2},
    "dp2-pp2": {"dp": 2, "pp": 2},
    "dp2-recompute": {"dp": 2, "recompute_layer": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zero_1_equals_zero_0_to_the_last_bit_however_late_the_weights_come(layout: str, tmp_path: Path) -> None:
    plain, sharded = (recipe_for(zero_stage, tmp_path, **LAYOUTS[layout]) for zero_stage in (0, 1))
    world_size = plain.parallelism.world_size
    expected = run_ranks(losses, world_size, plain, False)
    assert expected[0][0][-1] < expected[0][0][0], "it must learn, or old weights would do as well"
    assert run_ranks(losses, world_size, sharded, False) == expected
    assert run_ranks(losses, world_size, sharded, True) == expected


def losses_of_both(plain: Recipe, sharded: Recipe) -> tuple[Curve, Curve]:
    return losses(plain, False), losses(sharded, True)


def test_with_compiled_kernels_too(tmp_path: Path) -> None:
    """Both in the same processes: compiling takes most of the time."""
    plain, sharded = (recipe_for(zero_stage, tmp_path, compile=True, dp=2) for zero_stage in (0, 1))
    for expected, found in run_ranks(losses_of_both, 2, plain, sharded):
        assert found == expected


def places_of_waiting(recipe: Recipe) -> tuple[int, list[str]]:
    """How often a step waited for a message that was sent before, and the places that the watchdog would blame."""
    device = initialize_distributed().device
    state = TrainState(recipe, ParallelContext(1, 1, 2), device)
    waits, blamed = 0, []

    class Watched:
        def __init__(self, work: Any) -> None:
            self._work = work

        def wait(self) -> None:
            nonlocal waits
            waits += 1
            frames = traceback.extract_stack()[:-1]  # the wait itself is no Python, as a rule
            if not heartbeat._waits_for_others(frames):
                blamed.append(str(frames[-1]))
            self._work.wait()

    def watched(collective: Any) -> Any:
        def call(*arguments: Any, async_op: bool = False, **keywords: Any) -> Any:
            work = collective(*arguments, async_op=async_op, **keywords)
            return Watched(work) if async_op else work

        return call

    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"):
        setattr(dist, name, watched(getattr(dist, name)))
    for step in range(1, 4):
        state.train_step(random_batch(recipe, step, state.context.replica))
    state.optimizer.wait_for_weights()
    return waits, blamed


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_rank_that_waits_for_these_messages_is_not_blamed(tmp_path: Path, zero_stage: int) -> None:
    for waits, blamed in run_ranks(places_of_waiting, 2, recipe_for(zero_stage, tmp_path, dp=2)):
        assert waits >= 7 and blamed == []


def under_way(recipe: Recipe) -> tuple[int, list[int], int]:
    """Buckets in all; how many were there as each part of the model began; and when the step had ended."""
    buckets.BUCKET_BYTES = 1 << 13
    device = initialize_distributed().device
    state = TrainState(recipe, ParallelContext(1, 1, 2), device)
    state.train_step(random_batch(recipe, 1, state.context.replica))
    found = state.optimizer._gathers
    assert found is not None
    at_end, seen = found._taken, []
    for part in (state.model.embedding, *state.model.decoder, state.model.head):
        part.register_forward_pre_hook(lambda *_: seen.append(found._taken))
    state.train_step(random_batch(recipe, 2, state.context.replica))
    state.optimizer.wait_for_weights()
    return len(found._order), seen[:6], at_end


def test_each_layer_waits_for_its_own_weights_alone(tmp_path: Path) -> None:
    [first, second] = run_ranks(under_way, 2, recipe_for(1, tmp_path, dp=2))
    assert first == second
    buckets_in_all, seen, at_end = first
    assert at_end == 0, "a step ends without waiting"
    assert seen[0] == 1 and seen == sorted(seen) and seen[3] < buckets_in_all and seen[-1] == buckets_in_all
