"""Language-model head and cross-entropy in one, over chunks of tokens and a vocabulary split over ranks.

The logits of SmolLM3 (128,256 per token) are the largest tensor of a step. Here they exist for one chunk of tokens at
a time: the chunk's loss and its gradients are computed together, so nothing of vocabulary size is kept for the
backward. The loss is a weighted *sum*; whoever chooses the weights chooses the normalisation.
"""

from typing import Any

import torch

from nanotron_ext.engine import dist
from nanotron_ext.model.elementwise import Elementwise


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,  # [tokens, hidden_size]
        weight: torch.Tensor,  # [vocab_size/tp, hidden_size], this rank's rows
        labels: torch.Tensor,  # int64 [tokens]
        token_weights: torch.Tensor,  # float32 [tokens]
        group: Any,
        chunk_tokens: int,
        elementwise: Elementwise,
        needs_gradient: bool,
    ) -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_gradient else None
        # Summed over chunks in float32: bf16 partial sums would lose small contributions.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_gradient else None
        for start in range(0, hidden.shape[0], chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = hidden[chunk] @ weight.t()
            token_loss, grad_logits = _token_loss(logits, labels[chunk], token_weights[chunk], group, elementwise)
            del logits
            loss += (token_loss * token_weights[chunk]).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad_logits = grad_logits.to(weight.dtype)
                torch.mm(grad_logits, weight, out=grad_hidden[chunk])
                if weight.dtype == torch.float32:  # in place: 1.1 to 1.4 times as fast on a CPU, and nothing beside it
                    grad_weight.addmm_(grad_logits.t(), hidden[chunk])
                else:
                    grad_weight += grad_logits.t() @ hidden[chunk]
            del grad_logits  # before the next chunk's logits are there
        if needs_gradient:
            assert grad_weight is not None
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor) -> Any:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad_loss), grad_weight.mul_(grad_loss), None, None, None, None, None, None


def _token_loss(
    logits: torch.Tensor, labels: torch.Tensor, token_weights: torch.Tensor, group: Any, elementwise: Elementwise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy per token, and the gradient of its weighted sum with respect to the logits `[tokens, vocab/tp]`.

    The logits may be overwritten. With more than one rank three `[tokens]` vectors are reduced: the maximum, the
    label's logit, the sum of the other tokens' exponentials.

    The label's gradient is weight * (p - 1). As a difference it would lose what a confident token has left to learn: p
    in bf16 has no value between 0.996 and 1. So the label is taken out of both passes over the logits, 1 - p is the
    others' share, and the gradient is rounded once, to the logits' dtype.
    """
    vocab_shard = logits.shape[1]
    local_labels = labels - dist.get_rank(group) * vocab_shard
    is_local = (local_labels >= 0) & (local_labels < vocab_shard)
    local_labels = local_labels.clamp_(0, vocab_shard - 1)[:, None]
    if not elementwise.is_compiled:
        logits = logits.float()
    maximum = logits.amax(dim=1).float()
    _all_reduce(maximum, dist.ReduceOp.MAX, group)
    at_label = logits.gather(1, local_labels)
    label_logit = torch.where(is_local, at_label.squeeze(1) - maximum, 0.0)
    _all_reduce(label_logit, dist.ReduceOp.SUM, group)
    logits.scatter_(1, local_labels, at_label.masked_fill(is_local[:, None], -torch.inf))
    others = elementwise.sum_of_exponentials(logits, maximum)
    _all_reduce(others, dist.ReduceOp.SUM, group)
    normaliser = others + label_logit.exp()
    scale = token_weights / normaliser
    gradient = elementwise.scaled_exponentials(logits, maximum, scale)
    gradient.scatter_add_(1, local_labels, -(scale * others * is_local)[:, None].to(gradient.dtype))
    return normaliser.log() - label_logit, gradient


def _all_reduce(tensor: torch.Tensor, op: Any, group: Any) -> None:
    if group.size() > 1:
        dist.all_reduce(tensor, op=op, group=group)


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    token_weights: torch.Tensor,
    group: Any,
    chunk_tokens: int,
    elementwise: Elementwise,
) -> torch.Tensor:
    """Weighted sum of the tokens' cross-entropies, float32 scalar, equal on all ranks of `group`.

    `hidden` `[tokens, hidden_size]` (whole on every rank), `weight` `[vocab_size/tp, hidden_size]` (this rank's rows),
    `labels` int64 `[tokens]`, `token_weights` float32 `[tokens]` with 0 where a token is not trained.
    At most `chunk_tokens` tokens' logits exist at a time.
    The gradient of `hidden` is this rank's share; the caller sums it over `group`.
    """
    loss: torch.Tensor = _LinearCrossEntropy.apply(
        hidden, weight, labels, token_weights, group, chunk_tokens, elementwise, torch.is_grad_enabled()
    )
    return loss
