"""Where the documents of a micro-batch lie; every pipeline stage gets it beside the hidden states."""

import functools
import itertools
from dataclasses import dataclass

import torch

from nanotron_ext.model.sharding import Sharding
from nanotron_ext.model.transfer import to_device

MASK_ROWS = 512  # a mask of this many queries by 65,536 keys is 128 MiB; the whole one would be 16 GiB


@dataclass(frozen=True)
class QueryBlock:
    """Consecutive queries of this rank and the keys that they may see: of each of their documents all up to them.

    Only the first document can have keys before the block's first query, so both sides are contiguous and no key of
    another document, or of a later position, is ever touched.

    queries: rows of this rank's queries. keys: rows of the whole micro-batch's keys.
    query_lengths, key_lengths: tokens of each document on either side, on the host, so that no backend has to ask the
    device for them. The last query of a document meets its last key.
    cu_seqlens_q, cu_seqlens_k: int32 `[documents + 1]`, the same as ascending borders from 0.
    """

    queries: slice
    keys: slice
    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor

    @functools.cached_property
    def first_document_masks(self) -> tuple[torch.Tensor, ...]:
        """What each of the first document's queries sees of its keys, for kernels that cannot align both at the end.

        float32 `[up to MASK_ROWS queries, keys up to the last of them]`, 0 or -inf. All layers share them: given a mask
        of booleans, scaled_dot_product_attention makes such a one in every layer, and keeps it for the backward pass.
        """
        earlier, masks = self.key_lengths[0] - self.query_lengths[0], []
        for start in range(0, self.query_lengths[0], MASK_ROWS):
            rows = min(MASK_ROWS, self.query_lengths[0] - start)
            hidden = torch.ones(rows, earlier + start + rows, dtype=torch.bool).triu(earlier + start + 1)
            masks.append(torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf))
        return tuple(masks)


@dataclass(frozen=True)
class Documents:
    """Document layout of one micro-batch of `tokens` tokens, samples laid end to end, as one rank sees it.

    position_ids: int64 `[tokens/cp]` of this rank's tokens, restarting at 0 with each document.
    sharding: which of the micro-batch's tokens this rank holds.
    blocks: the attention that this rank computes; together they cover its tokens in order. One block without context
    parallelism.
    """

    position_ids: torch.Tensor
    sharding: Sharding
    blocks: tuple[QueryBlock, ...]

    @classmethod
    def from_lengths(
        cls, lengths: list[int], device: torch.device | str = "cpu", cp_size: int = 1, cp_rank: int = 0
    ) -> "Documents":
        """Layout of documents with the given lengths (each at least 1), laid end to end, on one rank of `cp_size`."""
        ends = torch.tensor([0, *lengths]).cumsum(0)
        positions = torch.arange(int(ends[-1])) - ends[:-1].repeat_interleave(torch.tensor(lengths))
        sharding = Sharding.balanced(positions, cp_size, cp_rank)
        borders = ends.tolist()
        offsets = [0, *itertools.accumulate(run.stop - run.start for run in sharding.runs)]
        blocks = tuple(
            query_block(run, offset, borders, device) for run, offset in zip(sharding.runs, offsets, strict=False)
        )
        return cls(to_device(sharding.take(positions), device), sharding, blocks)


def query_block(run: slice, offset: int, borders: list[int], device: torch.device | str) -> QueryBlock:
    """The block of the tokens in `run`, which are the rank's rows from `offset` on; `borders` of all documents."""
    inside = [border for border in borders if run.start < border < run.stop]
    first_key = max(border for border in borders if border <= run.start)
    query_lengths = [end - start for start, end in itertools.pairwise([run.start, *inside, run.stop])]
    key_lengths = [query_lengths[0] + run.start - first_key, *query_lengths[1:]]
    return QueryBlock(
        slice(offset, offset + run.stop - run.start),
        slice(first_key, run.stop),
        tuple(query_lengths),
        tuple(key_lengths),
        *(to_device(_borders(side), device) for side in (query_lengths, key_lengths)),
    )


def _borders(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
