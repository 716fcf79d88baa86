"""Initialisation as a pure function of (seed, parameter name), whatever the layout.

Each parameter's *whole* tensor is drawn in float32 on the CPU from a generator seeded by its name, and every rank
keeps its part. So all layouts and devices start from the same bits, tied copies are equal without being averaged
(nanotron averages two draws, which divides the standard deviation by sqrt(2)), and no two tensor-parallel shards can
be copies of each other (the fault that cost the SmolLM3 team a restart after 1T tokens).
"""

import hashlib

import torch
from torch import nn

from foundation.recipe import ModelConfig
from foundation.recipe.architecture import Parameter, parameters_of
from nanotron_ext.model.naming import global_parameters


def initialize(model: nn.Module, config: ModelConfig, seed: int, std: float) -> None:
    """Fill all parameters on this rank in place, as the table of the architecture's parameters says."""
    table = parameters_of(config)
    with torch.no_grad():
        for entry in global_parameters(model):
            entry.parameter.copy_(entry.cut(initial_tensor(table[entry.name], seed, std)))


def initial_tensor(parameter: Parameter, seed: int, std: float) -> torch.Tensor:
    """The whole initial tensor, float32 on the CPU: ones, or normal with mean 0 and `std`."""
    if parameter.init == "ones":
        return torch.ones(parameter.shape)
    digest = hashlib.sha256(f"{seed}/{parameter.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    return torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
