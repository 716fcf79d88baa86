"""Context parallelism: the tokens of a micro-batch spread over ranks, its keys and values gathered where needed.

Everything but attention works on single tokens, so every rank must hold equally many; attention costs a token its
position in its document, so the ranks' positions must add up alike. A micro-batch is cut into BLOCKS_PER_RANK x cp
blocks of equal length, which are dealt out heaviest first, one to each rank in turn, the heaviest to the rank with the
least work so far. For one document over the whole window that is the zigzag of ring attention; for packed documents it
follows them. By how much the busiest rank exceeds the mean over a whole layer, at 65,536 tokens and up to 8 ranks
(bench/context_parallel.py): at most 3 % with 4 blocks per rank, where the fixed zigzag has up to 21 % and contiguous
shards 55 %. More blocks would gain little and cut attention into smaller kernels.

Keys and values are gathered whole rather than passed round in a ring: docs/long_context.md says why.
"""

from dataclasses import dataclass
from typing import Any

import torch

from foundation.recipe.schema import BLOCKS_PER_RANK
from nanotron_ext.engine import dist


@dataclass(frozen=True)
class Sharding:
    """Which blocks of a micro-batch lie on which context-parallel rank, in ascending order, and which rank is ours."""

    blocks_of_rank: tuple[tuple[int, ...], ...]
    rank: int
    block_tokens: int

    @classmethod
    def balanced(cls, position_ids: torch.Tensor, cp_size: int, rank: int) -> "Sharding":
        """Blocks dealt out by the attention they cost; a pure function of the documents, the same on every rank."""
        if cp_size == 1:
            return cls(((0,),), 0, len(position_ids))
        work = (position_ids.view(cp_size * BLOCKS_PER_RANK, -1) + 1).sum(1).tolist()
        return cls(deal_blocks(work, cp_size), rank, len(position_ids) // len(work))

    @property
    def runs(self) -> list[slice]:
        """This rank's tokens as stretches of the micro-batch; neighbouring blocks are one stretch."""
        runs: list[slice] = []
        for block in self.blocks_of_rank[self.rank]:
            start, stop = block * self.block_tokens, (block + 1) * self.block_tokens
            if runs and runs[-1].stop == start:
                start = runs.pop().start
            runs.append(slice(start, stop))
        return runs

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """This rank's part of a tensor `[tokens, ...]` of the whole micro-batch."""
        return torch.cat([tokens[run] for run in self.runs]) if len(self.blocks_of_rank) > 1 else tokens

    def order(self) -> list[int]:
        """Block numbers in the order in which the ranks' shards, laid end to end, hold them."""
        return [block for blocks in self.blocks_of_rank for block in blocks]


def deal_blocks(work: list[int], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Equally many blocks for each rank, with about equal sums of `work`; ascending within a rank."""
    heaviest_first = sorted(range(len(work)), key=lambda block: (-work[block], block))
    load = [0] * ranks
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for first in range(0, len(work), ranks):
        least_loaded_first = sorted(range(ranks), key=lambda rank: (load[rank], rank))
        for rank, block in zip(least_loaded_first, heaviest_first[first : first + ranks], strict=True):
            dealt[rank].append(block)
            load[rank] += work[block]
    return tuple(tuple(sorted(blocks)) for blocks in dealt)


def gather_tokens(x: torch.Tensor, sharding: Sharding, group: Any) -> torch.Tensor:
    """`x` of all context-parallel ranks in the order of the micro-batch: `[tokens/cp, ...]` -> `[tokens, ...]`.

    The gradient of this rank's part is the sum of what all ranks have for it.
    """
    out: torch.Tensor = _GatherTokens.apply(x, sharding, group)
    return out


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sharding: Sharding, group: Any) -> torch.Tensor:
        ctx.sharding, ctx.group = sharding, group
        order = sharding.order()
        gathered = x.new_empty(len(x) * group.size(), *x.shape[1:])
        dist.all_gather_into_tensor(gathered, x.contiguous(), group=group)
        places = sorted(range(len(order)), key=order.__getitem__)
        return _permute_blocks(gathered, places)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        by_rank = _permute_blocks(grad, ctx.sharding.order())
        mine = grad.new_empty(len(grad) // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(mine, by_rank, op=dist.ReduceOp.SUM, group=ctx.group)
        return mine, None, None


def _permute_blocks(tokens: torch.Tensor, order: list[int]) -> torch.Tensor:
    """The equally long blocks of `tokens` in another order."""
    return torch.cat([tokens.chunk(len(order))[block] for block in order])
