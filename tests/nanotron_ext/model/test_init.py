"""Initial weights: the same in every layout, different on every shard."""

import hashlib
import itertools

import pytest
import torch

from foundation.recipe import Recipe
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.model.build import balanced_stages, build_model
from nanotron_ext.model.naming import global_parameters
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import small_recipe


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
