"""Blocks dealt to context-parallel ranks: nothing lost, fairly shared, and together the attention of one rank."""

import itertools

import pytest
import torch

from nanotron_ext.model.attention import attend
from nanotron_ext.model.documents import Documents
from nanotron_ext.model.sharding import deal_blocks

TOKENS = 96


def random_lengths(number: int, tokens: int) -> list[int]:
    """One document over the whole window, hundreds of short ones, or something between."""
    generator = torch.Generator().manual_seed(number)
    borders = [0, tokens // 3, 2, 9, 1][number % 5]
    cuts = sorted(set(torch.randint(1, tokens, (borders,), generator=generator).tolist()))
    return [stop - start for start, stop in itertools.pairwise([0, *cuts, tokens])]


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("cp", [1, 2, 4])
def test_ranks_together_hold_every_token_once_in_its_document(number: int, cp: int) -> None:
    lengths = random_lengths(number, TOKENS)
    ids = torch.arange(TOKENS)
    positions = torch.cat([torch.arange(length) for length in lengths])
    of_ranks = [Documents.from_lengths(lengths, cp_size=cp, cp_rank=rank) for rank in range(cp)]
    held = [documents.sharding.take(ids) for documents in of_ranks]
    assert [len(part) for part in held] == [TOKENS // cp] * cp
    assert torch.equal(torch.cat(held).sort().values, ids)
    for documents, part in zip(of_ranks, held, strict=True):
        assert torch.equal(documents.position_ids, positions[part])
        assert torch.equal(torch.cat([part[block.queries] for block in documents.blocks]), part)


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("cp", [2, 4])
def test_attention_of_all_ranks_is_that_of_one(number: int, cp: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and all three gradients, with masks cut into several pieces."""
    monkeypatch.setattr("nanotron_ext.model.documents.MASK_ROWS", 5)
    lengths = random_lengths(number, TOKENS)
    generator = torch.Generator().manual_seed(number)
    q, grad = (torch.randn(TOKENS, 4, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(TOKENS, 2, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    documents = Documents.from_lengths(lengths)
    expected = attend(q, k, v, documents)
    expected_grads = torch.autograd.grad(expected, (q, k, v), grad)
    grads = [torch.zeros_like(tensor) for tensor in (q, k, v)]
    for rank in range(cp):
        shard = Documents.from_lengths(lengths, cp_size=cp, cp_rank=rank)
        take = shard.sharding.take
        out = attend(take(q), k, v, shard)
        torch.testing.assert_close(out, take(expected), rtol=1e-12, atol=1e-12)
        for total, part in zip(grads, torch.autograd.grad(out, (q, k, v), take(grad)), strict=True):
            total += part
    for total, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(total, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("number", range(10))
def test_no_key_outside_a_blocks_documents_is_touched(number: int) -> None:
    """Keys of other documents, and those behind the last query, are not a number; nothing of it shows."""
    lengths = random_lengths(number, TOKENS)
    document_of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    ids = torch.arange(TOKENS)
    q, clean = torch.ones(TOKENS, 2, 4), torch.ones(TOKENS, 1, 4)
    for rank in range(4):
        shard = Documents.from_lengths(lengths, cp_size=4, cp_rank=rank)
        held = shard.sharding.take(ids)
        for block in shard.blocks:
            queries = held[block.queries]
            visible = torch.isin(document_of, document_of[queries]) & (ids <= queries.max())
            poisoned = torch.where(visible[:, None, None], clean, torch.nan)
            one = Documents(shard.position_ids, shard.sharding, (block,))
            out = attend(shard.sharding.take(q), poisoned, poisoned, one)
            torch.testing.assert_close(out, torch.ones_like(out))


def test_one_document_is_shared_exactly_and_packed_ones_nearly() -> None:
    ramp = [2 * block + 1 for block in range(16)]
    for ranks in (2, 4):
        loads = [sum(ramp[block] for block in blocks) for blocks in deal_blocks(ramp, ranks)]
        assert len(set(loads)) == 1
    for number in range(20):
        lengths = random_lengths(number, 4096)
        shards = [Documents.from_lengths(lengths, cp_size=4, cp_rank=rank) for rank in range(4)]
        loads = [float((shard.position_ids + 1).sum()) for shard in shards]
        assert max(loads) < 1.25 * sum(loads) / 4, lengths
