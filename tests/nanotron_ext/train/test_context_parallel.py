"""Context parallelism is exact: gradients within float32 rounding and the loss curve of one rank, for any documents."""

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
import torch

from foundation.recipe import Recipe
from nanotron_ext.data.loader import StepBatch
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.model.naming import GlobalParameter
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import random_batch, small_recipe

STEPS = 20
WINDOW = 256
MICRO_BATCHES = 2  # per step, over all replicas
DOCUMENT_KINDS = (1, 2, 3)  # steps that between them have every kind of documents

Gradients = list[dict[str, torch.Tensor]]


def recipe_for(dp: int = 1, zero_stage: int = 0, **parallelism: object) -> Recipe:
    return small_recipe(
        parallelism={"dp": dp, **parallelism},
        optimizer={"zero_stage": zero_stage},
        tokens={
            "sequence_length": WINDOW,
            "micro_batch_size": 2,
            "batch_accumulation_per_replica": MICRO_BATCHES // dp,
        },
        model_config={"max_position_embeddings": WINDOW, "num_hidden_layers": 2, "no_rope_layer_interval": 2},
    )


def packed_batch(recipe: Recipe, step: int, replica: int) -> StepBatch:
    """A random batch with one document over the whole micro-batch, hundreds of short ones, or a handful, in turn."""
    batch = random_batch(recipe, step, replica)
    micro_batches = []
    for number, micro_batch in enumerate(batch.micro_batches, replica * len(batch.micro_batches)):
        tokens = len(micro_batch.input_ids)
        generator = torch.Generator().manual_seed(step * MICRO_BATCHES + number)
        borders = (0, tokens // 2, 5)[(step + number) % 3]
        cuts = sorted(set(torch.randint(1, tokens, (borders,), generator=generator).tolist()))
        lengths = [stop - start for start, stop in itertools.pairwise([0, *cuts, tokens])]
        micro_batches.append(dataclasses.replace(micro_batch, lengths=lengths))
    return dataclasses.replace(batch, micro_batches=micro_batches)


def gradients_of(state: TrainState, batch: StepBatch) -> Iterator[tuple[GlobalParameter, int, torch.Tensor]]:
    """The batch's summed gradients as this rank holds them: parameter, first element, flat part. No update."""
    held = []

    def keep(learning_rate: float, norm: float) -> None:
        for group in state.optimizer.groups:
            assert group.master.grad is not None
            held.extend((slot.entry, start, part.clone()) for slot, start, part in group.parts(group.master.grad))

    update, state.optimizer.step = state.optimizer.step, keep  # type: ignore[method-assign]
    state.train_step(batch)
    state.optimizer.step = update  # type: ignore[method-assign]
    yield from held


def start(recipe: Recipe) -> TrainState:
    device = initialize_distributed().device
    p = recipe.parallelism
    return TrainState(recipe, ParallelContext(p.tp, p.pp, p.dp, p.context_parallel_size), device)


def curve_of(state: TrainState) -> list[tuple[float, float]]:
    results = [
        state.train_step(packed_batch(state.recipe, step, state.context.replica)) for step in range(1, STEPS + 1)
    ]
    return [(result.loss, result.grad_norm) for result in results]


def on_one_rank(recipe: Recipe) -> tuple[list[tuple[float, float]], Gradients]:
    """Loss and norm of every step, and whole gradients of the first three batches."""
    state = start(recipe)
    gradients = [
        {entry.name: part.view(entry.shape) for entry, _, part in gradients_of(state, packed_batch(recipe, step, 0))}
        for step in DOCUMENT_KINDS
    ]
    return curve_of(state), gradients


def on_many_ranks(recipe: Recipe, expected: Gradients) -> tuple[list[tuple[float, float]], float]:
    """The curve, and the largest error of a gradient's element relative to that gradient's largest element."""
    state = start(recipe)
    worst = 0.0
    for step, whole in zip(DOCUMENT_KINDS, expected, strict=True):
        for entry, first, part in gradients_of(state, packed_batch(recipe, step, state.context.replica)):
            wanted = entry.cut(whole[entry.name]).flatten()[first : first + len(part)]
            worst = max(worst, float((part - wanted).abs().max() / whole[entry.name].abs().max()))
    return curve_of(state), worst


@pytest.fixture(scope="module")
def single() -> tuple[list[tuple[float, float]], Gradients]:
    [(curve, gradients)] = run_ranks(on_one_rank, 1, recipe_for())
    assert curve[-1][0] < curve[0][0] - 0.05, "the reference must learn something, or equality means nothing"
    return curve, gradients


LAYOUTS = {
    "cp2": {"context_parallel_size": 2},
    "cp4": {"context_parallel_size": 4},
    "cp2-recompute-layer": {"context_parallel_size": 2, "recompute_layer": True},
    "cp2-recompute-mlp": {"context_parallel_size": 2, "recompute_mlp": True, "loss_chunk_tokens": 100},
    "cp2-tp2": {"context_parallel_size": 2, "tp": 2},
    "cp2-tp2-all-reduce": {"context_parallel_size": 2, "tp": 2, "tp_mode": "ALL_REDUCE"},
    "cp2-pp2": {"context_parallel_size": 2, "pp": 2},
    "cp2-dp2-zero1": {"context_parallel_size": 2, "dp": 2, "zero_stage": 1},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_and_curve_are_those_of_one_rank(
    layout: str, single: tuple[list[tuple[float, float]], Gradients]
) -> None:
    expected_curve, gradients = single
    recipe = recipe_for(**LAYOUTS[layout])  # type: ignore[arg-type]
    for curve, worst in run_ranks(on_many_ranks, recipe.parallelism.world_size, recipe, gradients):
        assert worst < 1e-5
        torch.testing.assert_close(torch.tensor(curve), torch.tensor(expected_curve), rtol=1e-4, atol=0)
