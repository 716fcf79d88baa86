"""Causal attention within documents, one interface over the backends of attention_backends.py.

Where a document has more keys than queries, the queries are its last ones: the kernels align both ends.
"""

import torch

from nanotron_ext.model.attention_backends import AttentionShape, choose_attention
from nanotron_ext.model.documents import Documents


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    """q `[tokens/cp, heads, head_dim]`, k and v `[tokens, kv_heads, head_dim]` -> `[tokens/cp, heads, head_dim]`."""
    _, backend = choose_attention(q.device.type, q.dtype, AttentionShape(q.shape[1], k.shape[1], q.shape[2]))
    outputs = [backend(q[block.queries], k[block.keys], v[block.keys], block) for block in documents.blocks]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
