"""FLOPs per step against a count of every matrix product of the model, done by torch."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from nanotron_ext.flops import step_flops
from nanotron_ext.hf_format import hf_config
from tests.nanotron_ext.samples import small_recipe


def test_step_flops_equal_counted_matrix_products() -> None:
    """Eager attention computes the whole square of scores; ours counts the causal half."""
    architecture = small_recipe(model_config={"hidden_size": 64, "intermediate_size": 160}).architecture
    model = SmolLM3ForCausalLM(SmolLM3Config(**hf_config(architecture, "float32"), attn_implementation="eager"))
    length = 48
    ids = torch.arange(length)[None]
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    square = 12 * architecture.num_hidden_layers * architecture.hidden_size * length**2
    counted = counter.get_total_flops() - square // 2
    norms = 6 * architecture.hidden_size * (2 * architecture.num_hidden_layers + 1) * length  # in 6N, but no products
    expected = step_flops(architecture, length, length**2) - norms
    assert counted == expected
