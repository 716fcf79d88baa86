"""Theta and YaRN against transformers: frequencies, attention factor, tables, and logits beyond the trained length."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SmolLM3Config, SmolLM3ForCausalLM
from transformers.models.smollm3.modeling_smollm3 import SmolLM3RotaryEmbedding

from foundation.errors import UserError
from foundation.recipe import ModelConfig, Recipe, RecipeError, load_recipe
from foundation.recipe.architecture import RopeScaling, parameters_of
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.export import ExportError, stretched
from nanotron_ext.hf_format import hf_config, model_config_from_hf, to_hf
from nanotron_ext.model.build import build_model
from nanotron_ext.model.documents import Documents
from nanotron_ext.model.naming import global_parameters
from nanotron_ext.model.rotary import rotary_frequencies, rotary_tables
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.samples import small_recipe

FACTORS = [None, 1.0, 2.0, 4.0, 8.0]
TRAINED = 48


def with_yarn(recipe: Recipe, factor: float | None, **keys: Any) -> Recipe:
    """The recipe's model, trained at TRAINED tokens, stretched by `factor` (None: theta alone)."""
    changes: dict[str, Any] = {"max_position_embeddings": int(TRAINED * (factor or 8.0))}
    if factor is not None:
        changes["rope_scaling"] = {"factor": factor, "original_max_position_embeddings": TRAINED, **keys}
    return small_recipe(model_config={**recipe.architecture.model_dump(), **changes})


def model_3b(theta: float, factor: float | None) -> ModelConfig:
    scaling = RopeScaling(factor=factor, original_max_position_embeddings=65536) if factor else None
    published = load_recipe("recipes/smollm3-3b/pretrain.yaml").architecture
    length = int(65536 * (factor or 1.0))
    return published.model_copy(
        update={"rope_theta": theta, "rope_scaling": scaling, "max_position_embeddings": length}
    )


@pytest.mark.parametrize("theta", [10_000.0, 1.5e6, 2.0e6, 5.0e6])
@pytest.mark.parametrize("factor", FACTORS)
def test_tables_are_those_of_transformers_to_the_bit(theta: float, factor: float | None) -> None:
    config = model_3b(theta, factor)
    reference = SmolLM3RotaryEmbedding(SmolLM3Config(**hf_config(config, "float32")))
    frequencies, attention_factor = rotary_frequencies(config)
    assert torch.equal(frequencies, reference.inv_freq)
    assert attention_factor == reference.attention_scaling
    positions = torch.tensor([0, 1, 4095, 65535, 65536, 100_001, 131_071, 500_000])
    expected = reference(torch.zeros(1), positions[None])
    for table, wanted in zip(rotary_tables(positions, config), expected, strict=True):
        assert torch.equal(table[:, 0], wanted[0, :, : config.head_dim // 2])


@pytest.mark.parametrize("keys", [{"attention_factor": 1.25}, {"beta_fast": 4.0, "beta_slow": 0.5}])
def test_other_keys_of_yarn_reach_transformers_too(keys: dict[str, float]) -> None:
    config = with_yarn(small_recipe(), 4.0, **keys).architecture
    reference = SmolLM3RotaryEmbedding(SmolLM3Config(**hf_config(config, "float32")))
    frequencies, attention_factor = rotary_frequencies(config)
    assert torch.equal(frequencies, reference.inv_freq)
    assert attention_factor == reference.attention_scaling
    plain, _ = rotary_frequencies(with_yarn(small_recipe(), 4.0).architecture)
    assert attention_factor == 1.25 or not torch.equal(frequencies, plain)


def logits_and_weights(recipe: Recipe, ids: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    device = initialize_distributed().device
    model = build_model(recipe, ParallelContext(1, 1, 1), device)
    with torch.no_grad():
        logits = model.logits(ids, Documents.from_lengths([len(ids)]))
    return logits, {entry.name: entry.parameter.detach() for entry in global_parameters(model)}


@pytest.mark.parametrize("factor", FACTORS)
def test_logits_equal_transformers_beyond_the_trained_length(factor: float | None) -> None:
    recipe = with_yarn(small_recipe(), factor)
    ids = torch.randint(0, 96, (TRAINED * 8,), generator=torch.Generator().manual_seed(0))
    [(logits, weights)] = run_ranks(logits_and_weights, 1, recipe, ids)
    config = SmolLM3Config(**hf_config(recipe.architecture, "float32"))
    reference = SmolLM3ForCausalLM(config).eval()
    state = reference.state_dict()
    for name, whole in weights.items():
        for hf_name, part in to_hf(parameters_of(recipe.architecture)[name], whole):
            state[hf_name].copy_(part)
    with torch.no_grad():
        expected = reference(ids[None]).logits[0]
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_yarn_leaves_a_model_without_rotary_alone() -> None:
    """With rotary in no layer at all (interval 1), theta and YaRN change nothing, to the bit."""
    ids = torch.arange(40) + 3
    base = small_recipe(model_config={"no_rope_layer_interval": 1})
    [(plain, _)] = run_ranks(logits_and_weights, 1, base, ids)
    [(yarn, _)] = run_ranks(logits_and_weights, 1, with_yarn(base, 4.0), ids)
    [(rotary, _)] = run_ranks(logits_and_weights, 1, with_yarn(small_recipe(), 4.0), ids)
    assert torch.equal(plain, yarn)
    assert not torch.equal(plain, rotary)


def test_config_goes_to_transformers_and_back() -> None:
    config = model_3b(5e6, 2.0)
    written = json.loads(json.dumps(hf_config(config, "bfloat16")))
    assert written["max_position_embeddings"] == 131072
    source = Path("config.json")
    assert model_config_from_hf(written, source) == config
    with pytest.raises(UserError, match="mscale"):
        model_config_from_hf({**written, "rope_parameters": {**written["rope_parameters"], "mscale": 1.0}}, source)


def test_export_declares_a_longer_model() -> None:
    trained = model_3b(5e6, None)
    assert stretched(trained, 2.0) == model_3b(5e6, 2.0)
    with pytest.raises(ExportError, match="already"):
        stretched(model_3b(5e6, 2.0), 2.0)
    with pytest.raises(ExportError, match="whole"):
        stretched(trained, 1.00001)


def test_a_factor_that_contradicts_the_lengths_is_refused() -> None:
    scaling = "{factor: 4.0, original_max_position_embeddings: 65536}"
    with pytest.raises(RecipeError, match=r"factor 4 x .* 65536 is not max_position_embeddings 131072"):
        load_recipe(
            "recipes/smollm3-3b/pretrain.yaml",
            [
                "model.model_config.max_position_embeddings=131072",
                f"model.model_config.rope_scaling={scaling}",
            ],
        )
