"""The chunked head: torch's loss and gradients, whatever the chunk, and never more than a chunk's logits."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.model.elementwise import Elementwise
from nanotron_ext.model.loss import linear_cross_entropy
from tests.nanotron_ext.ranks import run_ranks

TOKENS, HIDDEN, VOCAB = 50, 12, 90


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    return hidden, weight, labels, (torch.rand(TOKENS, generator=generator) - 0.3).clamp(min=0)


def chunked(chunk_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Loss, gradients of hidden states and of this rank's rows, and the largest tensor; tp as many as ranks."""
    initialize_distributed()
    group = ParallelContext(torch.distributed.get_world_size(), 1, 1).tp_pg
    hidden, weight, labels, token_weights = inputs()
    mine = weight.chunk(group.size())[group.rank()].clone().requires_grad_()
    hidden.requires_grad_()
    with LargestTensor() as largest:
        loss = linear_cross_entropy(
            hidden, mine, labels, token_weights, group, chunk_tokens, Elementwise(compiled=False)
        )
        (2.0 * loss).backward()
    assert hidden.grad is not None and mine.grad is not None
    return loss.detach(), hidden.grad, mine.grad, largest.elements


@pytest.mark.parametrize(("chunk_tokens", "tp"), [(1, 1), (7, 1), (50, 1), (2048, 1), (16, 2)])
def test_loss_and_gradients_are_those_of_the_full_logits(chunk_tokens: int, tp: int) -> None:
    hidden, weight, labels, token_weights = (x.double() if x.is_floating_point() else x for x in inputs())
    hidden.requires_grad_()
    weight.requires_grad_()
    token_losses = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, reduction="none")
    expected = (token_losses * token_weights).sum()
    (2.0 * expected).backward()
    results = run_ranks(chunked, tp, chunk_tokens)
    grad_hidden = torch.stack([result[1] for result in results]).sum(0)
    grad_weight = torch.cat([result[2] for result in results])
    for loss, _, _, largest in results:
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)
        assert largest <= max(min(chunk_tokens, TOKENS) * VOCAB // tp, VOCAB * HIDDEN)
    torch.testing.assert_close(grad_hidden.double(), hidden.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_weight.double(), weight.grad, rtol=1e-5, atol=1e-5)
