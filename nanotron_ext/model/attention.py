"""Causal attention within documents, one interface over three backends.

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

from nanotron_ext.model.documents import Documents

AttentionFunction: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents], torch.Tensor]


def attend_per_document(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    """q `[tokens, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]` -> `[tokens, heads, head_dim]`."""
    outputs = []
    pieces = zip(*(x.split(documents.lengths) for x in (q, k, v)), strict=True)
    for q_doc, k_doc, v_doc in pieces:
        # [1, heads, document tokens, head_dim]: the layout of scaled_dot_product_attention
        q_doc, k_doc, v_doc = (x.transpose(0, 1).unsqueeze(0) for x in (q_doc, k_doc, v_doc))
        out = functional.scaled_dot_product_attention(q_doc, k_doc, v_doc, is_causal=True, enable_gqa=True)
        outputs.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(outputs)


def _attend_flash_attn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    cu, longest = documents.cu_seqlens, documents.max_seqlen
    out: torch.Tensor = flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, causal=True)
    return out


def _attend_torch_varlen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    cu, longest = documents.cu_seqlens, documents.max_seqlen
    out = varlen_attn(q, k, v, cu, cu, longest, longest, **_varlen_arguments())
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
