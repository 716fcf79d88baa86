"""Initial weights: the same in every layout, different on every shard."""

import hashlib
import itertools
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.recipe import Recipe
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.model.build import balanced_stages, build_model
from nanotron_ext.model.naming import global_parameters
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import small_recipe


class CountingDraws(TorchDispatchMode):
    """How many random numbers torch's kernels are asked for, whoever asks."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.split("::")[1].rstrip("_") in ("normal", "uniform", "random", "exponential"):
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


def drawn_elements(recipe: Recipe, draws: bool) -> tuple[int, int]:
    """Random numbers drawn on this rank to build its model, and elements that it holds."""
    device, p = initialize_distributed().device, recipe.parallelism
    context = ParallelContext(p.tp, p.pp, p.dp)
    with CountingDraws() as counting:
        model = build_model(recipe, context, device, draws)
    return counting.elements, sum(parameter.numel() for parameter in model.parameters())


def local_parameters(recipe: Recipe) -> dict[str, tuple[tuple[int, ...], list, torch.Tensor]]:
    device = initialize_distributed().device
    p = recipe.parallelism
    model = build_model(recipe, ParallelContext(p.tp, p.pp, p.dp), device)
    return {
        entry.name: (entry.shape, [(piece.local, piece.whole) for piece in entry.pieces], entry.parameter.detach())
        for entry in global_parameters(model)
    }


@pytest.mark.parametrize("tied", [True, False])
def test_every_layout_starts_from_the_same_whole_tensors(tied: bool) -> None:
    architecture = {"tie_word_embeddings": tied}
    [single] = run_ranks(local_parameters, 1, small_recipe(model_config=architecture))
    recipe = small_recipe(model_config=architecture, parallelism={"tp": 2, "pp": 2})
    seen: set[str] = set()
    for of_rank in run_ranks(local_parameters, 4, recipe):
        seen |= of_rank.keys()
        for name, (shape, pieces, local) in of_rank.items():
            whole = single[name][2]
            assert tuple(whole.shape) == shape
            for local_bounds, whole_bounds in pieces:
                mine = local[tuple(slice(*bounds) for bounds in local_bounds)]
                assert torch.equal(mine, whole[tuple(slice(*bounds) for bounds in whole_bounds)]), name
    assert seen == single.keys()


@pytest.mark.parametrize("tied", [True, False])
def test_initial_weights_are_what_the_announcement_says(tied: bool) -> None:
    """Norms are 1; matrices are normal with the recipe's deviation (0.02 there, 0.08 here), each by its name and seed.

    Stated anew from the recipe's numbers: vectors and matrices are told apart by their dimensions alone.
    """
    recipe = small_recipe(model_config={"tie_word_embeddings": tied})
    [single] = run_ranks(local_parameters, 1, recipe)
    assert ("head.lm_head.weight" in single) is not tied
    for name, (shape, _, local) in single.items():
        if len(shape) == 1:
            expected = torch.ones(shape)
        else:
            seed = int.from_bytes(hashlib.sha256(f"{recipe.general.seed}/{name}".encode()).digest()[:8], "little")
            generator = torch.Generator().manual_seed(seed & (2**63 - 1))
            expected = torch.normal(0.0, torch.full(shape, 0.08), generator=generator)
            assert abs(float(local.mean())) < 0.08 * 5 / local.numel() ** 0.5
        assert torch.allclose(local, expected, rtol=1e-6, atol=0), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replicas_share_the_drawing_and_hold_the_same(dtype: str) -> None:
    model = {"dtype": dtype, "init_method": {"std": 0.08}}
    model["model_config"] = small_recipe().architecture.model_dump()
    [single] = run_ranks(local_parameters, 1, small_recipe(model=model))
    recipe = small_recipe(model=model, parallelism={"dp": 3})
    for of_rank in run_ranks(local_parameters, 3, recipe):
        assert all(torch.equal(value, single[name][2]) for name, (_, _, value) in of_rank.items())
    counted = run_ranks(drawn_elements, 3, recipe, True)
    matrices = sum(value.numel() for _, _, value in single.values() if value.ndim == 2)
    assert sum(drawn for drawn, _ in counted) == matrices
    assert max(drawn for drawn, _ in counted) < 0.4 * matrices


def test_nothing_is_drawn_for_a_state_that_is_loaded() -> None:
    """Neither by `initialize` nor by the layers that torch and nanotron build, as their own initial values."""
    [(drawn, held)] = run_ranks(drawn_elements, 1, small_recipe(), False)
    assert drawn == 0 and held > 10_000
    [(drawn, _)] = run_ranks(drawn_elements, 1, small_recipe(), True)
    assert 10_000 < drawn < held


def test_no_two_tensor_parallel_shards_are_alike() -> None:
    first, second = run_ranks(local_parameters, 2, small_recipe(parallelism={"tp": 2}))
    for name, (_, _, local) in first.items():
        if "layernorm" not in name:
            assert not torch.equal(local, second[name][2]), name


def test_standard_deviation_also_of_a_tied_embedding_across_stages() -> None:
    [*_, last] = run_ranks(local_parameters, 2, small_recipe(parallelism={"pp": 2}))
    tied_head = last["embedding.token_embedding.weight"][2]
    assert abs(float(tied_head.std()) / 0.08 - 1) < 0.05  # nanotron's average of two draws gives 0.71


def test_other_seeds_and_names_give_other_values() -> None:
    [first] = run_ranks(local_parameters, 1, small_recipe())
    [second] = run_ranks(local_parameters, 1, small_recipe(general={"seed": 4}))
    matrices = [(name, value[2]) for name, value in first.items() if "layernorm" not in name]
    assert not any(torch.equal(value, second[name][2]) for name, value in matrices)
    same_shape = [
        (left, right) for (_, left), (_, right) in itertools.combinations(matrices, 2) if left.shape == right.shape
    ]
    assert same_shape and not any(torch.equal(left, right) for left, right in same_shape)


def test_stages_are_balanced_by_compute() -> None:
    smollm3_3b = small_recipe(
        model_config={
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
        }
    ).architecture
    assert balanced_stages(smollm3_3b, 1) == [36]
    assert balanced_stages(smollm3_3b, 2) == [20, 16]
    assert sum(balanced_stages(smollm3_3b, 4)) == 36
    assert balanced_stages(small_recipe().architecture, 4) == [1, 1, 1, 1]
