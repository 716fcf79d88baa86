"""Causal attention within documents, one interface over three backends.

Where a document has more keys than queries, the queries are its last ones: the kernels align both ends.

* `flash_attn`: the package's variable-length kernel, if it is installed (GPU).
* `torch_varlen`: torch's own variable-length flash attention (GPU, torch >= 2.10).
* `per_document`: one exact `scaled_dot_product_attention` per document (any device; the CPU path). Its cost is the sum
  of squared document lengths, and no document's result can depend on another's tokens, not even by rounding.
"""

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from nanotron_ext.model.documents import Documents, QueryBlock

AttentionFunction: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, QueryBlock], torch.Tensor]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    """q `[tokens/cp, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]` -> `[tokens/cp, heads, head_dim]`."""
    backend = attention_backend(q.device.type, q.dtype)
    outputs = [backend(q[block.queries], k[block.keys], v[block.keys], block) for block in documents.blocks]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


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


@functools.cache
def attention_backend(device_type: str, dtype: torch.dtype) -> AttentionFunction:
    """The fastest exact backend for the device and dtype."""
    if device_type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        if importlib.util.find_spec("flash_attn") is not None:
            return _attend_flash_attn
        if importlib.util.find_spec("torch.nn.attention.varlen") is not None:
            return _attend_torch_varlen
    return attend_per_document


def backend_name(device_type: str, dtype: torch.dtype) -> str:
    """Of `attention_backend`, as this module's docstring lists them."""
    return attention_backend(device_type, dtype).__name__.lstrip("_").removeprefix("attend_")
