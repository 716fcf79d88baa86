"""The kernels that can compute attention within documents, and the choice among them: the first one that works here.

* `flash_attn_3`: FlashAttention 3's variable-length kernel, if the module `flash_attn_interface` is installed (H100).
* `flash_attn`: FlashAttention 2's, if the package flash-attn is installed (GPU).
* `torch_varlen`: torch's own variable-length flash attention (GPU, torch >= 2.10).
* `per_document`: one exact `scaled_dot_product_attention` per document (any device; the CPU path). Its cost is the sum
  of squared document lengths, and no document's result can depend on another's tokens, not even by rounding.

That a package is installed says little: it may have been built against another torch, for another GPU, or be of a
release that aligns queries and keys at their beginnings (flash-attn before 2.1). So each kernel is tried on a few
documents, forward and backward, beside `per_document` in float32.
"""

import functools
import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from nanotron_ext.model.documents import QueryBlock, query_block

AttentionFunction: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, QueryBlock], torch.Tensor]

logger = logging.getLogger("nanotron_ext.model")

TOLERANCE = 0.04  # of the largest value: exact attention in bfloat16 differs by 0.008, a wrong mask by about 1


@dataclass(frozen=True)
class AttentionShape:
    """Heads of one rank, and the size of each."""

    heads: int
    kv_heads: int
    head_dim: int


def attend_per_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: QueryBlock) -> torch.Tensor:
    """q `[queries, heads, head_dim]`, k and v `[keys, kv_heads, head_dim]` -> `[queries, heads, head_dim]`."""
    outputs = []
    queries, keys, values = q.split(block.query_lengths), k.split(block.key_lengths), v.split(block.key_lengths)
    for document in zip(queries, keys, values, strict=True):
        # [1, heads, document tokens, head_dim]: the layout of scaled_dot_product_attention
        q_doc, k_doc, v_doc = (x.transpose(0, 1).unsqueeze(0) for x in document)
        if q_doc.shape[2] == k_doc.shape[2]:
            out = functional.scaled_dot_product_attention(q_doc, k_doc, v_doc, is_causal=True, enable_gqa=True)
        else:
            out = _attend_to_end(q_doc, k_doc, v_doc, block.first_document_masks)
        outputs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def _attend_to_end(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, masks: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Causal attention of one document whose last queries are given: the last of them sees all keys."""
    outputs = []
    for rows, mask in zip(q.split([len(mask) for mask in masks], dim=2), masks, strict=True):
        seen_k, seen_v = k[:, :, : mask.shape[1]], v[:, :, : mask.shape[1]]
        mask = mask.to(q.device, q.dtype)
        outputs.append(functional.scaled_dot_product_attention(rows, seen_k, seen_v, attn_mask=mask, enable_gqa=True))
    return torch.cat(outputs, dim=2)


def _attend_flash_attn_3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: QueryBlock) -> torch.Tensor:
    from flash_attn_interface import flash_attn_varlen_func

    longest = max(block.query_lengths), max(block.key_lengths)
    out = flash_attn_varlen_func(q, k, v, block.cu_seqlens_q, block.cu_seqlens_k, *longest, causal=True)
    first: torch.Tensor = out[0] if isinstance(out, tuple) else out  # early releases add the log-sum-exp
    return first


def _attend_flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: QueryBlock) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    longest = max(block.query_lengths), max(block.key_lengths)
    out: torch.Tensor = flash_attn_varlen_func(q, k, v, block.cu_seqlens_q, block.cu_seqlens_k, *longest, causal=True)
    return out


def _attend_torch_varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: QueryBlock) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = max(block.query_lengths), max(block.key_lengths)
    out = varlen_attn(q, k, v, block.cu_seqlens_q, block.cu_seqlens_k, *longest, **_varlen_arguments())
    assert isinstance(out, torch.Tensor)  # a tuple only when the log-sum-exp is asked for
    return out


@functools.cache
def _varlen_arguments() -> dict[str, Any]:
    """How this torch release spells causal masking and grouped queries in `varlen_attn`."""
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    return {**causal, **({"enable_gqa": True} if "enable_gqa" in parameters else {})}


PER_DOCUMENT = "per_document"
KERNELS: dict[str, tuple[str, AttentionFunction]] = {  # name -> (module, function), the fastest first
    "flash_attn_3": ("flash_attn_interface", _attend_flash_attn_3),
    "flash_attn": ("flash_attn", _attend_flash_attn),
    "torch_varlen": ("torch.nn.attention.varlen", _attend_torch_varlen),
}


@functools.cache
def choose_attention(device_type: str, dtype: torch.dtype, shape: AttentionShape) -> tuple[str, AttentionFunction]:
    """Name and function of the fastest exact backend that works on this process's device; logs what does not."""
    if device_type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        for name, (module, function) in KERNELS.items():
            if importlib.util.find_spec(module) is None:
                continue
            if (problem := problem_of(module, function, torch.device(device_type), dtype, shape)) is None:
                return name, function
            logger.warning(f"Attention does not use {name}: {problem}")
        logger.warning("Attention computes each document by itself: no variable-length kernel works here.")
    return PER_DOCUMENT, attend_per_document


def problem_of(
    module: str, function: AttentionFunction, device: torch.device, dtype: torch.dtype, shape: AttentionShape
) -> str | None:
    """What is wrong with a kernel, tried on three documents of which the first has keys before its queries."""
    block = query_block(slice(67, 200), 0, [0, 130, 131, 200], device)
    generator = torch.Generator().manual_seed(0)
    sizes = ((133, shape.heads), (200, shape.kv_heads), (200, shape.kv_heads), (133, shape.heads))
    inputs = [torch.randn(*size, shape.head_dim, generator=generator).to(device, dtype) for size in sizes]
    try:
        importlib.import_module(module)
        results = _with_gradients(function, inputs, block)
        expected = _with_gradients(attend_per_document, [tensor.float() for tensor in inputs], block)
        worst = max(_difference(got, wanted) for got, wanted in zip(results, expected, strict=True))
    except Exception as error:  # whatever a foreign kernel or its loader raises
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
    return None if worst < TOLERANCE else f"its results differ from the reference by up to {worst:.2g}"


def _with_gradients(
    function: AttentionFunction, inputs: list[torch.Tensor], block: QueryBlock
) -> tuple[torch.Tensor, ...]:
    q, k, v, direction = (tensor.detach() for tensor in inputs)
    with torch.enable_grad():
        leaves = [tensor.requires_grad_() for tensor in (q, k, v)]
        out = function(q, k, v, block)
        return out.detach(), *torch.autograd.grad(out, leaves, direction)


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, by the scale of what is wanted; infinite where `got` is not finite."""
    difference = ((got.float() - wanted).abs().amax() / wanted.abs().amax().clamp(min=1)).item()
    return difference if difference == difference else float("inf")
