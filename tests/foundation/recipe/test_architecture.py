"""The table of parameters against what the announcement and transformers say of the model."""

import math
from collections import Counter

import pytest
import torch
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from foundation.recipe import ModelConfig, RecipeError, load_recipe
from foundation.recipe.architecture import parameters_of
from nanotron_ext.hf_format import hf_config

PUBLISHED = load_recipe("recipes/smollm3-3b/pretrain.yaml").architecture


def small(**changes: object) -> ModelConfig:
    """No two sizes are alike, so that none can stand for another."""
    sizes = {
        "vocab_size": 80, "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2,
    }  # fmt: skip
    return PUBLISHED.model_copy(update=sizes | changes)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [2, 6])
def test_parts_are_the_tensors_of_transformers_model(tied: bool, kv_heads: int) -> None:
    config = small(tie_word_embeddings=tied, num_key_value_heads=kv_heads)
    with torch.device("meta"):
        model = SmolLM3ForCausalLM(SmolLM3Config(**hf_config(config, "float32") | {"pad_token_id": 0}))
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    parts = [
        (name, (rows, *parameter.shape[1:]))
        for parameter in parameters_of(config).values()
        for name, rows in parameter.parts.items()
    ]
    assert dict(parts) == expected and len(parts) == len(expected)
    assert config.num_parameters() == sum(math.prod(shape) for shape in expected.values())


def test_published_model() -> None:
    """3B: 128,256 tokens, width 2048, 36 layers of 16 heads, 4 of keys and values, MLP of 11,008, tied; only matrices
    are drawn, and the embedding alone does not decay (norms do)."""
    h, kv, width = 2048, 512, 11008
    of_kind = {
        "embedding.token_embedding.weight": (128256, h),
        "input_layernorm.weight": (h,),
        "attention.qkv_proj.weight": (h + kv + kv, h),
        "attention.o_proj.weight": (h, h),
        "post_attention_layernorm.weight": (h,),
        "mlp.gate_up_proj.weight": (2 * width, h),
        "mlp.down_proj.weight": (h, width),
        "head.final_layernorm.weight": (h,),
    }
    parameters = parameters_of(PUBLISHED)
    kinds = Counter(name.split(".", 2)[2] if name.startswith("decoder.") else name for name in parameters)
    assert kinds == {name: 1 if name.startswith(("embedding", "head")) else 36 for name in of_kind}
    for name, parameter in parameters.items():
        kind = name.split(".", 2)[2] if name.startswith("decoder.") else name
        assert parameter.shape == of_kind[kind]
        assert (parameter.init == "ones") == (len(parameter.shape) == 1)
    optimizer = load_recipe("recipes/smollm3-3b/pretrain.yaml").optimizer
    assert [name for name in parameters if not optimizer.has_weight_decay(name)] == ["embedding.token_embedding.weight"]


def test_tensor_parallel_ranks_share_matrices_and_copy_norms() -> None:
    config = small(tie_word_embeddings=False)
    for parameter in parameters_of(config).values():
        alone, shared = parameter.elements_per_rank(1), parameter.elements_per_rank(2)
        assert alone == math.prod(parameter.shape) and shared == (alone if len(parameter.shape) == 1 else alone // 2)


def test_exclusion_that_excludes_nothing_is_refused() -> None:
    pattern = r"optimizer.weight_decay_exclude_named_params=['token_embeding\.weight$']"
    with pytest.raises(RecipeError, match="matches no parameter of this model"):
        load_recipe("recipes/tiny/pretrain.yaml", [pattern])
