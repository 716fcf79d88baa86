"""Rotary position embedding in the half-split convention of transformers, and its extension by YaRN.

Feature i of the first half pairs with feature i of the second half (RoFormer, arXiv 2104.09864, as laid out in
transformers' `rotate_half`), so that exporting weights is renaming, not permuting.

YaRN (arXiv 2309.00071) stretches positions beyond the trained length: features that turn often within it keep their
frequency, features that turn less than `beta_slow` times have theirs divided by `factor`, and those between are
blended. Scores are sharpened by scaling queries and keys with `attention_factor`. Both enter through the tables, so a
layer without rotary is not touched by either.
"""

import functools
import math

import torch

from foundation.recipe import ModelConfig
from foundation.recipe.architecture import RopeScaling


def rotary_frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """Radians per position, float32 `[head_dim / 2]`, and the factor on the tables (1 without YaRN)."""
    periods = config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return 1.0 / periods, 1.0
    # In transformers' order of operations: one rounding more is 0.008 radians at position 65,536.
    kept = _kept_share(config, scaling)
    frequencies = 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept
    if scaling.attention_factor is not None:
        return frequencies, scaling.attention_factor
    return frequencies, 0.1 * math.log(scaling.factor) + 1.0


def _kept_share(config: ModelConfig, scaling: RopeScaling) -> torch.Tensor:
    """How much of each frequency stays: 1 for the fastest, 0 (all divided by the factor) for the slowest."""

    def feature_that_turns(times: float) -> float:
        """The (fractional) feature that makes `times` full turns within the trained length."""
        wavelength = scaling.original_max_position_embeddings / (2 * math.pi * times)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    first = max(math.floor(feature_that_turns(scaling.beta_fast)), 0)
    last = min(math.ceil(feature_that_turns(scaling.beta_slow)), config.head_dim - 1)
    features = torch.arange(config.head_dim // 2, dtype=torch.float32)
    return 1 - ((features - first) / (last - first or 0.001)).clamp(0, 1)


@functools.cache
def _frequencies_on(device: torch.device, config: ModelConfig) -> tuple[torch.Tensor, float]:
    """Kept on the device: a copy from the host would make every step wait for the one before it."""
    frequencies, factor = rotary_frequencies(config)
    return frequencies.to(device), factor


def rotary_tables(position_ids: torch.Tensor, config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines in float32, each `[tokens, 1, head_dim / 2]`, for int64 positions `[tokens]`."""
    frequencies, factor = _frequencies_on(position_ids.device, config)
    angles = position_ids[:, None].float() * frequencies
    return angles.cos()[:, None, :] * factor, angles.sin()[:, None, :] * factor
