"""The written-out and the compiled elementwise parts against float64 formulas under autograd.

Compiling for a CPU takes most of the time of this file; it stands for the GPU, where the same bodies are compiled.
"""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.model.elementwise import Elementwise
from nanotron_ext.model.loss import linear_cross_entropy
from tests.nanotron_ext.ranks import run_ranks

TOKENS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCAB = 37, 4, 2, 6, 10, 90
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
MODES = [pytest.param(False, id="written"), pytest.param(True, id="compiled", marks=needs_compiler)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equal_with_gradients(
    function: Callable[..., torch.Tensor],
    formula: Callable[..., torch.Tensor],
    inputs: list[torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """`function` in `dtype` against `formula` in float64 on the same (rounded) inputs, and their gradients."""
    rounded = [x.to(dtype).requires_grad_() for x in inputs]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    got, expected = function(*rounded), formula(*exact)
    assert got.dtype == dtype
    direction = random(*expected.shape, seed=9).to(dtype)
    gradients = torch.autograd.grad(got, rounded, direction)
    expected_gradients = torch.autograd.grad(expected, exact, direction.double())
    # A bf16 number has 8 bits: each rounding is up to 2^-9 of it.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for mine, wanted in zip((got, *gradients), (expected, *expected_gradients), strict=True):
        torch.testing.assert_close(mine.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compiled", MODES)
def test_values_and_gradients(compiled: bool, dtype: torch.dtype) -> None:
    elementwise = Elementwise(compiled)
    assert_equal_with_gradients(
        elementwise.swiglu,
        lambda x: x[:, :WIDTH] / (1 + (-x[:, :WIDTH]).exp()) * x[:, WIDTH:],
        [random(TOKENS, 2 * WIDTH)],
        dtype,
    )
    assert_equal_with_gradients(
        lambda x, weight: elementwise.rms_norm(x, weight, 1e-6),
        lambda x, weight: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight,
        [random(TOKENS, WIDTH), random(WIDTH, seed=1) + 1],
        dtype,
    )
    angles = random(TOKENS, HEAD_DIM // 2, seed=2)
    cos, sin = angles.cos()[:, None].float(), angles.sin()[:, None].float()
    assert_equal_with_gradients(
        lambda qkv: torch.cat(elementwise.split_and_rotate(qkv, HEADS, KV_HEADS, cos, sin), dim=1),
        lambda qkv: rotated(qkv, angles),
        [random(TOKENS, HEADS + 2 * KV_HEADS, HEAD_DIM)],
        dtype,
    )


def rotated(qkv: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Complex multiplication of queries and keys by exp(i angle); values as they are."""
    turned, values = qkv[:, : HEADS + KV_HEADS], qkv[:, HEADS + KV_HEADS :]
    first, second = turned.chunk(2, dim=-1)
    product = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat((torch.cat((product.real, product.imag), dim=-1), values), dim=1)


def loss_and_gradients(compiled: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, gradients of the hidden states and of this rank's rows of the head; tp as many as ranks."""
    initialize_distributed()
    group = ParallelContext(torch.distributed.get_world_size(), 1, 1).tp_pg
    hidden, weight, labels, token_weights = loss_inputs(dtype)
    mine = weight.chunk(group.size())[group.rank()].clone().requires_grad_()
    hidden.requires_grad_()
    loss = linear_cross_entropy(hidden, mine, labels, token_weights, group, 16, Elementwise(compiled))
    loss.backward()
    assert hidden.grad is not None and mine.grad is not None
    return loss.detach(), hidden.grad, mine.grad


def loss_inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(5))
    weights = (random(TOKENS, seed=6).abs() - 0.3).clamp(min=0).float()
    return random(TOKENS, WIDTH).to(dtype), random(VOCAB, WIDTH, seed=4).to(dtype), labels, weights


@pytest.mark.parametrize("compiled", MODES)
@pytest.mark.parametrize(("dtype", "tp"), [(torch.float32, 1), (torch.bfloat16, 1), (torch.bfloat16, 2)], ids=str)
def test_loss(compiled: bool, dtype: torch.dtype, tp: int) -> None:
    hidden, weight, labels, token_weights = (x.double() if x.is_floating_point() else x for x in loss_inputs(dtype))
    hidden.requires_grad_()
    weight.requires_grad_()
    expected = (functional.cross_entropy(hidden @ weight.t(), labels, reduction="none") * token_weights).sum()
    expected.backward()
    results = run_ranks(loss_and_gradients, tp, compiled, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for loss, _, _ in results:
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=tolerance / 3, atol=0)
    grad_hidden = torch.stack([result[1].double() for result in results]).sum(0)
    grad_weight = torch.cat([result[2].double() for result in results])
    torch.testing.assert_close(grad_hidden, hidden.grad, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(grad_weight, weight.grad, rtol=tolerance, atol=tolerance)


PROBABILITIES = (0.5, 0.9, 0.99, 0.998, 0.999, 0.9999)
TOKENS_OF_EACH = 16
WEIGHT = 0.013  # of every token, as in a step
CONFIDENT_VOCAB = 20_000  # enough small terms for a float32 sum to lose them beside the label's


def confident_logits(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[tokens, vocab]` that give their labels PROBABILITIES, up to the rounding of a logit; and the labels."""
    tokens = len(PROBABILITIES) * TOKENS_OF_EACH
    logits = random(tokens, CONFIDENT_VOCAB, seed=7)
    labels = torch.randint(0, CONFIDENT_VOCAB, (tokens,), generator=torch.Generator().manual_seed(8))
    probability = torch.tensor(PROBABILITIES, dtype=torch.float64).repeat_interleave(TOKENS_OF_EACH)
    at_label = labels[:, None]
    others = logits.scatter(1, at_label, -torch.inf).logsumexp(1)
    logits.scatter_(1, at_label, ((probability / (1 - probability)).log() + others)[:, None])
    return logits.to(dtype), labels


def gradients_of_logits(compiled: bool, dtype: torch.dtype, chunk_tokens: int) -> torch.Tensor:
    """Of this rank's part of the vocabulary: with one-hot hidden states the head's rows are the logits themselves."""
    initialize_distributed()
    group = ParallelContext(torch.distributed.get_world_size(), 1, 1).tp_pg
    logits, labels = confident_logits(dtype)
    weight = logits.t().chunk(group.size())[group.rank()].contiguous().requires_grad_()
    token_weights = torch.full((len(labels),), WEIGHT)
    elementwise = Elementwise(compiled)
    linear_cross_entropy(
        torch.eye(len(labels), dtype=dtype), weight, labels, token_weights, group, chunk_tokens, elementwise
    ).backward()
    assert weight.grad is not None
    return weight.grad.t()


@pytest.mark.parametrize("compiled", MODES)
@pytest.mark.parametrize(
    ("dtype", "tp", "chunk_tokens"),
    [(torch.float32, 1, 48), (torch.bfloat16, 1, 48), (torch.bfloat16, 1, 2048), (torch.bfloat16, 2, 48)],
    ids=str,
)
def test_label_gradients_of_confident_tokens(compiled: bool, dtype: torch.dtype, tp: int, chunk_tokens: int) -> None:
    """weight * (p - 1), which is as exact at p = 0.9999 as at 0.5: one rounding, and in the sum over tokens no bias."""
    logits, labels = confident_logits(dtype)
    exact = logits.double().requires_grad_()
    (WEIGHT * functional.cross_entropy(exact, labels, reduction="sum")).backward()
    assert exact.grad is not None
    got = torch.cat(run_ranks(gradients_of_logits, tp, compiled, dtype, chunk_tokens), dim=1).double()
    at_label = labels[:, None]
    shape = len(PROBABILITIES), TOKENS_OF_EACH
    mine, wanted = got.gather(1, at_label).view(shape), exact.grad.gather(1, at_label).view(shape)
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 1e-5
    assert ((mine - wanted) / wanted).abs().amax(1).lt(1.05 * rounding).all(), mine / wanted
    assert (mine.sum(1) / wanted.sum(1) - 1).abs().lt(0.5 * rounding).all(), mine.sum(1) / wanted.sum(1)
    torch.testing.assert_close(got, exact.grad, rtol=1.05 * rounding, atol=1e-12)


def kernels_of_the_loss() -> list[int]:
    """How many kernels torch.compile makes of each of the loss's two passes over the logits."""
    from torch._inductor import metrics

    logits, labels = confident_logits(torch.bfloat16)
    maximum = logits.amax(1).float()
    elementwise, counts = Elementwise(compiled=True), []
    for function, arguments in (
        (elementwise.sum_of_exponentials, (logits, maximum)),
        (elementwise.scaled_exponentials, (logits, maximum, torch.rand(len(labels)))),
    ):
        metrics.reset()
        function(*arguments)
        counts.append(metrics.generated_kernel_count)
    return counts


@needs_compiler
def test_each_pass_over_the_logits_is_one_kernel() -> None:
    assert run_ranks(kernels_of_the_loss, 1) == [[1, 1]]
