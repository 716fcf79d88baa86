"""One bit that flips on one rank is reported, with rank and node, before anything is saved; and nothing else is."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.journal import read_metrics
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointReader, list_checkpoints, resolve_checkpoint
from nanotron_ext.data.loader import StepBatch
from nanotron_ext.engine import ParallelContext, dist, initialize_distributed, node_name
from nanotron_ext.train.replicas import COLUMNS, ReplicaError, hash_of_bits
from nanotron_ext.train.run import run
from nanotron_ext.train.step import StepResult, TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import random_batch, small_recipe
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

FLIPPED_AFTER, INTERVAL = 3, 4
MLP, NORM, EMBEDDING = "decoder.1.mlp.down_proj.weight", "decoder.1.input_layernorm.weight", "token_embedding.weight"


def recipe_for(zero_stage: int = 0, dtype: str = "float32", interval: int | None = INTERVAL, **layout: Any) -> Recipe:
    dp = layout.get("dp", 1)
    return small_recipe(
        parallelism={"replica_check_interval": interval, **layout},
        model={"dtype": dtype},
        model_config={"tie_word_embeddings": True},
        optimizer={"zero_stage": zero_stage},
        tokens={"micro_batch_size": 2, "batch_accumulation_per_replica": 4 // dp},
    )


def state_for(recipe: Recipe) -> TrainState:
    p = recipe.parallelism
    device = initialize_distributed().device
    return TrainState(recipe, ParallelContext(p.tp, p.pp, p.dp, p.context_parallel_size), device)


def flip(tensor: torch.Tensor, place: int = 5, bit: int = 0) -> None:
    """Flip one bit of an element, by default the lowest of its mantissa."""
    integers = tensor.detach().view(torch.int16 if tensor.element_size() == 2 else torch.int32).flatten()
    integers[place] ^= 1 << bit


def flip_weight(state: TrainState, ending: str) -> None:
    """Of the first parameter whose name ends so, where the model reads it."""
    names = (slot for group in state.optimizer.groups for slot in group.slots)
    flip(next(slot.entry.parameter.data for slot in names if slot.entry.name.endswith(ending)))


def train_and_flip(recipe: Recipe, victim: int, what: str) -> tuple[int, str]:
    """(step at which the run ended, why); (8, "") when it did not."""
    state = state_for(recipe)
    for step in range(1, 9):
        try:
            state.train_step(random_batch(recipe, step, state.context.replica))
        except ReplicaError as error:
            return step, str(error)
        if step == FLIPPED_AFTER:
            state.optimizer.wait_for_weights()
        if step == FLIPPED_AFTER and dist.get_rank() == victim:
            group = state.optimizer.groups[0]
            if what in ("master", "exp_avg", "exp_avg_sq"):
                flip(group.master if what == "master" else state.optimizer.adam.state[group.master][what])
            elif what:
                flip_weight(state, what)
    return 8, ""


CASES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    # layout, rank, what flips there, what the message calls it
    "zero0": ({"dp": 2}, 1, MLP, "weights"),
    "zero0-bfloat16": ({"dp": 2, "dtype": "bfloat16"}, 1, MLP, "weights"),
    "zero0-master": ({"dp": 2, "dtype": "bfloat16"}, 0, "master", "float32 masters or Adam state"),
    "zero0-exp_avg": ({"dp": 2}, 1, "exp_avg", "float32 masters or Adam state"),
    "zero0-exp_avg_sq": ({"dp": 2}, 1, "exp_avg_sq", "float32 masters or Adam state"),
    "zero1": ({"dp": 2, "zero_stage": 1}, 1, MLP, "weights"),
    "zero1-bfloat16": ({"dp": 2, "zero_stage": 1, "dtype": "bfloat16"}, 0, EMBEDDING, "weights"),
    "cp2": ({"context_parallel_size": 2}, 1, MLP, "weights"),
    "cp2-zero1": ({"context_parallel_size": 2, "zero_stage": 1}, 1, NORM, "weights"),
    "tp2": ({"tp": 2}, 1, NORM, "copies of the norms"),
    "tp2-bfloat16": ({"tp": 2, "dtype": "bfloat16"}, 1, NORM, "copies of the norms"),
    "tp2-all-reduce": ({"tp": 2, "tp_mode": "ALL_REDUCE"}, 1, NORM, "copies of the norms"),
    "pp2": ({"pp": 2}, 1, EMBEDDING, "copies of the tied embedding"),
    "pp2-dp2-zero1": ({"pp": 2, "dp": 2, "zero_stage": 1}, 3, EMBEDDING, "weights"),
    "tp2-dp2": ({"tp": 2, "dp": 2}, 2, MLP, "weights"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_flipped_bit_is_reported_within_the_interval(case: str) -> None:
    layout, victim, what, called = CASES[case]
    recipe = recipe_for(**layout)
    ended = run_ranks(train_and_flip, recipe.parallelism.world_size, recipe, victim, what)
    assert {step for step, _ in ended} == {4}, "on all ranks at once, within the interval"
    [message] = {message for _, message in ended}
    assert message.startswith(f"Step 4: {called}") and f"rank {victim} on {node_name()}" in message
    assert "were not compared before" in message or "equal at step" in message


def test_the_majority_is_right_and_only_the_other_rank_is_named() -> None:
    recipe = recipe_for(dp=4, interval=1)
    ended = run_ranks(train_and_flip, 4, recipe, 2, MLP)
    [(step, message)] = set(ended)
    assert step == FLIPPED_AFTER + 1
    assert f"weights of rank 2 on {node_name()} are others than the 3 that must hold the same" in message
    assert "equal at step 3" in message and not any(f"rank {rank} " in message for rank in (0, 1, 3))


def test_switched_off_it_says_nothing() -> None:
    assert run_ranks(train_and_flip, 2, recipe_for(dp=2, interval=None), 1, MLP) == [(8, "")] * 2


def held(recipe: Recipe) -> dict[str, torch.Tensor]:
    """What this rank holds of the norms and the embedding after twenty steps."""
    state = state_for(recipe)
    for step in range(1, 21):
        state.train_step(random_batch(recipe, step, state.context.replica))
    state.optimizer.wait_for_weights()
    slots = [slot for group in state.optimizer.groups for slot in group.slots]
    return {slot.entry.name: slot.entry.parameter.detach().clone() for slot in slots if "norm" in slot.entry.name}


@pytest.mark.parametrize("zero_stage", [0, 1])
@pytest.mark.parametrize("tp_mode", ["REDUCE_SCATTER", "ALL_REDUCE"])
def test_copies_of_the_norms_stay_equal_to_the_last_bit(zero_stage: int, tp_mode: str) -> None:
    """Four replicas: sums of four numbers depend on their order, and each tensor-parallel rank has sums of its own."""
    recipe = recipe_for(dp=4, tp=2, zero_stage=zero_stage, tp_mode=tp_mode, interval=1)
    first, *others = run_ranks(held, 8, recipe)
    assert len(first) == 9
    for other in others:
        assert all(torch.equal(other[name], weight) for name, weight in first.items())


def flip_in_a_run(recipe: Recipe, what: str) -> str:
    """A run on whose second rank a bit flips after step 6; the message that it ends with."""
    train_step = TrainState.train_step

    def train_and_flip_once(state: TrainState, batch: StepBatch, *arguments: Any) -> StepResult:
        result = train_step(state, batch, *arguments)
        if batch.step == 6 and dist.get_rank() == 1:
            flip_weight(state, what)
        return result

    TrainState.train_step = train_and_flip_once  # type: ignore[method-assign]
    try:
        run(recipe)
    except ReplicaError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("interval", "step"), [(100, 8), (7, 7)])
def test_a_run_ends_without_saving_and_goes_on_from_before(tmp_path: Path, interval: int, step: int) -> None:
    """Also when no comparison is due before the next save: then the save makes one."""
    prepare(tmp_path)
    keys = {"parallelism": f"{{dp: 2, replica_check_interval: {interval}}}", "optimizer__zero_stage": 0}
    straight, recipe = (tiny_recipe(tmp_path, general__run=name, **keys) for name in ("straight", "flipped"))
    run_ranks(run, 2, straight)
    messages = run_ranks(flip_in_a_run, 2, recipe, MLP)
    assert messages[0] == messages[1] and messages[0].startswith(f"Step {step}: weights of rank 0 on {node_name()}, ra")
    assert [path.name for path in list_checkpoints(recipe.run_folder)] == ["4"]
    outcome = json.loads((recipe.run_folder / "outcome.json").read_text())
    assert outcome["outcome"] == "crashed" and outcome["message"] == messages[0], "so that another attempt is made"
    run_ranks(run, 2, recipe)
    rows, expected = read_metrics(recipe.run_folder), read_metrics(straight.run_folder)
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    ours, theirs = (CheckpointReader(resolve_checkpoint(one.run_folder)) for one in (recipe, straight))
    assert all(torch.equal(ours.read("master", name), theirs.read("master", name)) for name in theirs.names())
    shutil.rmtree(tmp_path)


def poisoned_by_one_rank(recipe: Recipe) -> str:
    state = state_for(recipe)
    state.train_step(random_batch(recipe, 1, state.context.replica))
    if dist.get_rank() == 1:
        slots = (slot for group in state.optimizer.groups for slot in group.slots)
        weight = next(slot.entry.parameter.data for slot in slots if slot.entry.name.endswith(NORM))
        weight[3] = math.inf
    try:
        state.train_step(random_batch(recipe, 2, state.context.replica))
    except ReplicaError as error:
        return str(error)
    return ""


def test_a_loss_that_is_not_a_number_for_one_rank_names_it() -> None:
    for message in run_ranks(poisoned_by_one_rank, 2, recipe_for(dp=2, interval=100)):
        assert message.startswith("Step 2: weights of rank 0")


@pytest.mark.parametrize("size", [16, COLUMNS * 2, COLUMNS * 6 + 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_single_bit_and_an_exchange_change_the_hash(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    flat = torch.randn(size, generator=generator).to(dtype)
    odd = torch.arange(1, 2 * COLUMNS, 2)
    before = int(hash_of_bits(flat, odd))
    assert int(hash_of_bits(flat.clone(), odd)) == before
    bits = 8 * flat.element_size()
    for place in [*torch.randint(size, (20,), generator=generator).tolist(), 0, size - 1]:
        for bit in range(bits):
            changed = flat.clone()
            integers = changed.view(torch.int16 if bits == 16 else torch.int32)
            integers[place] ^= (1 << bit) if bit < bits - 1 else -(1 << bit)
            assert int(hash_of_bits(changed, odd)) != before, (place, bit)
    exchanged = flat.clone()
    exchanged[:8], exchanged[8:16] = flat[8:16].clone(), flat[:8].clone()
    assert int(hash_of_bits(exchanged, odd)) != before


def test_hashing_never_waits_for_the_device() -> None:
    """Tensors of torch's meta device have no values: whatever asked for one would raise."""
    odd = torch.arange(1, 2 * COLUMNS, 2, device="meta")
    assert hash_of_bits(torch.empty(COLUMNS * 8, dtype=torch.bfloat16, device="meta"), odd).shape == ()
