"""Initialisation as a pure function of (seed, parameter name), whatever the layout.

Each parameter's *whole* tensor is drawn in float32 on the CPU from a generator seeded by its name, by one replica for
all of them, and every rank keeps its part. So all layouts and devices start from the same bits, tied copies are equal
without being averaged (nanotron averages two draws, which divides the standard deviation by sqrt(2)), and no two
tensor-parallel shards can be copies of each other (the fault that cost the SmolLM3 team a restart after 1T tokens).
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from foundation.recipe import ModelConfig
from foundation.recipe.architecture import Parameter, parameters_of
from nanotron_ext.engine import ParallelContext, dist
from nanotron_ext.model.naming import global_parameters


class NoDraws(TorchFunctionMode):
    """While modules are built: torch's own layers draw initial values, which `initialize` or a checkpoint replaces."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.kaiming_uniform_, nn.init.normal_, nn.init.uniform_):
            return None  # no layer looks at it
        return func(*args, **(kwargs or {}))


def initialize(model: nn.Module, config: ModelConfig, seed: int, std: float, context: ParallelContext) -> None:
    """Fill all parameters on this rank in place, as the table of the architecture's parameters says.

    Replicas share the drawing, tensor by tensor: all 3.07 G values of the 3B model take one core 14 s, and its largest
    tensor, the most that a rank draws at 192 replicas, has a twelfth of them. To be called on all ranks.
    """
    table, replica = parameters_of(config), dist.get_rank(context.dp_pg)
    entries = list(global_parameters(model))
    drawn_by = spread([table[entry.name].elements for entry in entries], context.dp_pg.size())
    with torch.no_grad():
        for entry, drawer in zip(entries, drawn_by, strict=True):
            if drawer == replica:
                entry.parameter.copy_(entry.cut(initial_tensor(table[entry.name], seed, std)))
        for entry, drawer in zip(entries, drawn_by, strict=True):
            if len(set(drawn_by)) > 1:
                source = dist.get_global_rank(context.dp_pg, drawer)
                dist.broadcast(entry.parameter.data, src=source, group=context.dp_pg)


def spread(work: Sequence[int], ranks: int) -> list[int]:
    """Which of the ranks does each piece of work, largest pieces first, each to the rank with the least so far."""
    load, done_by = [0] * ranks, [0] * len(work)
    for piece in sorted(range(len(work)), key=lambda piece: -work[piece]):
        done_by[piece] = min(range(ranks), key=load.__getitem__)
        load[done_by[piece]] += work[piece]
    return done_by


def initial_tensor(parameter: Parameter, seed: int, std: float) -> torch.Tensor:
    """The whole initial tensor, float32 on the CPU: ones, or normal with mean 0 and `std`."""
    if parameter.init == "ones":
        return torch.ones(parameter.shape)
    digest = hashlib.sha256(f"{seed}/{parameter.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
    return torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
