"""The elementwise parts of a layer: RMSNorm, rotation of queries and keys, SwiGLU, and the softmax of the loss.

Their backward passes are written out, so that little is kept (SwiGLU keeps its input alone) and gradients are written
straight into the joint tensor that the linear layer in front of them wants. On GPUs, where each operation is a pass
over memory, their bodies are compiled, one kernel each; the norm is torch's own there, which is fused already. On CPUs
torch composes it of ten operations, and the one written here takes 0.3 to 0.5 of their time.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional


class Elementwise:
    """The functions of a model on one device, compiled or as written.

    Compiling needs what torch.compile needs: Triton on a GPU, a C++ compiler on a CPU. It happens in the first step.
    """

    def __init__(self, compiled: bool) -> None:
        self.is_compiled = compiled
        self._norm: Callable[..., torch.Tensor] = functional.rms_norm if compiled else _rms_norm
        self._gate, self._gate_backward = self._prepared(_gate), self._prepared(_gate_backward)
        self._join_rotated = self._prepared(_join_rotated)
        # Fused, both read the logits in the model's dtype, and no float32 copy of them is made. Pass by pass, the
        # copy is made once and overwritten twice.
        self._sum = _compiled(_sum_of_exponentials) if compiled else _sum_of_exponentials_in_place
        self._scaled = _compiled(_scaled_exponentials) if compiled else _scaled_exponentials_in_place

    def _prepared(self, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return _compiled(function) if self.is_compiled else function

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`x` `[tokens, width]` over its root mean square, times `weight` `[width]`."""
        return self._norm(x, weight.shape, weight, eps)

    def swiglu(self, gate_up: torch.Tensor) -> torch.Tensor:
        """`[tokens, 2 width]` -> silu(first half) * second half, `[tokens, width]`."""
        out: torch.Tensor = _SwiGLU.apply(gate_up, self._gate, self._gate_backward)
        return out

    def split_and_rotate(
        self, qkv: torch.Tensor, heads: int, kv_heads: int, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys, turned by their positions, and values out of `[tokens, heads + 2 kv_heads, head_dim]`.

        `cos` and `sin` are `rotary.rotary_tables`. Rotation is computed in float32.
        """
        out: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        out = _SplitAndRotate.apply(qkv, cos, sin, (heads, kv_heads, kv_heads), self._join_rotated)
        return out

    def sum_of_exponentials(self, logits: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
        """Row sums of exp(logits - maximum), float32 `[rows]`; not compiled, it overwrites float32 logits."""
        return self._sum(logits, maximum)

    def scaled_exponentials(self, logits: torch.Tensor, maximum: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """exp(logits - maximum) * scale, in the logits' dtype; for the logits that `sum_of_exponentials` has seen."""
        return self._scaled(logits, maximum, scale)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One compiled function for all models of the process."""
    return torch.compile(function)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor, forward: Any, backward: Any) -> torch.Tensor:
        ctx.save_for_backward(gate_up)
        ctx.compute_backward = backward
        out: torch.Tensor = forward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return ctx.compute_backward(grad, *ctx.saved_tensors), None, None


def _gate(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def _gate_backward(grad: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.cat((torch.ops.aten.silu_backward(grad * up, gate), grad * functional.silu(gate)), dim=-1)


class _SplitAndRotate(torch.autograd.Function):
    """Values are copied beside the rotated queries and keys, so that the projection's output need not be kept."""

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sizes: tuple[int, int, int], rotated: Any
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.rotated = rotated
        joined: torch.Tensor = rotated(*qkv.split(sizes, dim=1), cos, sin)
        return joined.split(sizes, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        cos, sin = ctx.saved_tensors
        return ctx.rotated(*grads, cos, -sin), None, None, None, None  # a rotation's transpose turns back


def _join_rotated(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    return torch.cat((_rotate(q, cos, sin), _rotate(k, cos, sin), v), dim=1)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, dim=-1).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        return (wide * inverse_rms).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        grad, wide_weight, normed = grad.float(), weight.float(), x.float() * inverse_rms
        product = grad * normed
        along = torch.mv(product, wide_weight).div_(x.shape[-1])[:, None]
        grad_x = torch.addcmul(grad * wide_weight, normed, along, value=-1).mul_(inverse_rms)
        return grad_x.to(x.dtype), product.sum(0).to(weight.dtype), None


def _rms_norm(x: torch.Tensor, shape: torch.Size, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out: torch.Tensor = _RMSNorm.apply(x, weight, eps)
    return out


def _sum_of_exponentials(logits: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    return (logits.float() - maximum[:, None]).exp().sum(dim=1)


def _scaled_exponentials(logits: torch.Tensor, maximum: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return ((logits.float() - maximum[:, None]).exp() * scale[:, None]).to(logits.dtype)


def _sum_of_exponentials_in_place(logits: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
    return logits.sub_(maximum[:, None]).exp_().sum(dim=1)


def _scaled_exponentials_in_place(logits: torch.Tensor, maximum: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return logits.mul_(scale[:, None])  # they are exponentials by now
