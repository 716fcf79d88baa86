"""Rotary position embedding in the half-split convention of transformers.

Feature i of the first half pairs with feature i of the second half (RoFormer, arXiv 2104.09864, as laid out in
transformers' `rotate_half`), so that exporting weights is renaming, not permuting.
"""

import torch


def rotary_tables(position_ids: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines in float32, each `[tokens, 1, head_dim / 2]`, for int64 positions `[tokens]`."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    angles = position_ids[:, None].float() * (1.0 / theta**exponents)
    return angles.cos()[:, None, :], angles.sin()[:, None, :]


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `x` [tokens, heads, head_dim] by its position; computed in float32, returned in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
