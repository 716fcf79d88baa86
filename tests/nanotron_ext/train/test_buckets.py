"""Gradients reduced bucket by bucket, from within the backward: the sum over all samples, whatever the layout."""

from typing import Any

import pytest
import torch

from foundation.recipe import Recipe
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.model.build import build_model
from nanotron_ext.model.documents import Documents
from nanotron_ext.model.naming import global_parameters
from nanotron_ext.train import buckets
from nanotron_ext.train.step import TrainState
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import random_batch, small_recipe

Part = tuple[str, torch.Tensor]


def recipe_for(dp: int = 1, zero_stage: int = 0, dtype: str = "float32", **parallelism: Any) -> Recipe:
    """Eight samples a step in micro-batches of one; odd sizes, so that buckets need padding."""
    return small_recipe(
        parallelism={"dp": dp, **parallelism},
        model={"dtype": dtype},
        model_config={"hidden_size": 24, "intermediate_size": 38, "vocab_size": 98},
        optimizer={"zero_stage": zero_stage},
        tokens={"batch_accumulation_per_replica": 8 // dp},
    )


def plain_gradients(recipe: Recipe) -> dict[str, torch.Tensor]:
    """autograd's own gradients of the mean loss over all samples at once."""
    device = initialize_distributed().device
    model = build_model(recipe, ParallelContext(1, 1, 1), device)
    batch = random_batch(recipe, 1)
    losses = [
        model(
            input_ids=micro_batch.input_ids,
            label_ids=micro_batch.label_ids,
            label_weights=micro_batch.label_mask.float() / batch.trained_tokens,
            documents=Documents.from_lengths(micro_batch.lengths),
        )["loss"]
        for micro_batch in batch.micro_batches
    ]
    entries = list(global_parameters(model))
    found = torch.autograd.grad(torch.stack(losses).sum(), [entry.parameter for entry in entries])
    return {entry.name: gradient for entry, gradient in zip(entries, found, strict=True)}


def reduced(recipe: Recipe, expected: dict[str, torch.Tensor]) -> tuple[list[Part], list[Part], float, int, int]:
    """This rank's parts of the summed gradients in two steps and what they should be, and the norm of the second.

    With them: how many buckets were on their way when the backward ended, and how many there are.
    """
    buckets.BUCKET_BYTES = 1 << 13
    device = initialize_distributed().device
    p = recipe.parallelism
    state = TrainState(recipe, ParallelContext(p.tp, p.pp, p.dp), device)
    optimizer = state.optimizer
    early: list[int] = []
    got: list[Part] = []
    wanted: list[Part] = []
    reduce_gradients = optimizer.reduce_gradients

    def count_and_reduce() -> torch.Tensor:
        early.append(len(optimizer._gradients._launched))
        return reduce_gradients()

    def keep(learning_rate: float, norm: float) -> None:
        for group in optimizer.groups:
            assert group.master.grad is not None
            for slot, start, part in group.parts(group.master.grad):
                entry = slot.entry
                got.append((entry.name, part.clone()))
                wanted.append((entry.name, entry.cut(expected[entry.name]).flatten()[start : start + len(part)]))

    optimizer.reduce_gradients, optimizer.step = count_and_reduce, keep  # type: ignore[method-assign]
    for _ in range(2):  # the second must not add to the first
        result = state.train_step(random_batch(recipe, 1, state.context.replica))
    return got, wanted, result.grad_norm, early[-1], sum(len(group.buckets) for group in optimizer.groups)


LAYOUTS = {
    "one rank": {},
    "dp2-zero0": {"dp": 2},
    "dp2-zero1": {"dp": 2, "zero_stage": 1},
    "dp2-zero1-pp2": {"dp": 2, "zero_stage": 1, "pp": 2},
    "dp2-zero1-tp2": {"dp": 2, "zero_stage": 1, "tp": 2},
    "dp4-zero1": {"dp": 4, "zero_stage": 1},
}


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    [gradients] = run_ranks(plain_gradients, 1, recipe_for())
    return gradients  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_are_those_of_plain_autograd(layout: str, plain: dict[str, torch.Tensor]) -> None:
    recipe = recipe_for(**LAYOUTS[layout])  # type: ignore[arg-type]
    norm = float(torch.stack([gradient.double().square().sum() for gradient in plain.values()]).sum().sqrt())
    results = run_ranks(reduced, recipe.parallelism.world_size, recipe, plain)
    for got, wanted, grad_norm, early, count in results:
        assert grad_norm == pytest.approx(norm, rel=1e-5)
        for (name, part), (_, expected) in zip(got, wanted, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)
        assert count >= 4
        assert early == (count if recipe.parallelism.dp > 1 else 0)
    held = sum(len(part) for result in results for _, part in result[0]) / 2  # two steps
    whole = sum(gradient.numel() for gradient in plain.values())
    assert held >= whole, "every element belongs to a rank"


def test_float32_on_one_rank_keeps_no_second_copy_of_the_parameters() -> None:
    assert run_ranks(masters_are_parameters, 1, recipe_for()) == [True]
    assert run_ranks(masters_are_parameters, 1, recipe_for(dtype="bfloat16")) == [False]


def masters_are_parameters(recipe: Recipe) -> bool:
    device = initialize_distributed().device
    state = TrainState(recipe, ParallelContext(1, 1, 1), device)
    return all(group.master.data_ptr() == group.params.data_ptr() for group in state.optimizer.groups)
