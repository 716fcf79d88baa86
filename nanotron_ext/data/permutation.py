"""A keyed pseudo-random order of `range(size)` that is computed, not stored.

A generalised Feistel network permutes `left_size x right_size >= size` places (Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002); an image outside `range(size)` is sent through again until it falls inside (cycle
walking), which leaves a permutation of `range(size)`. Four rounds, with splitmix64's mixer as round function.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def source_key(seed: int, source: str) -> int:
    """64-bit key of a source's order; sources with different names are shuffled independently."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{source}".encode()).digest()[:8], "little")


def permute(
    index: NDArray[np.int64], size: NDArray[np.int64], key: NDArray[np.uint64], epoch: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Element at place `index` of the order of `range(size)` that belongs to `key` and `epoch`.

    All arguments are `[n]` and go together element by element, since one step draws on many sources. `index < size`.
    """
    epoch_key = _mix(key + _GOLDEN_GAMMA * epoch.astype(np.uint64))
    rounds = np.arange(1, ROUNDS + 1, dtype=np.uint64)
    round_keys = _mix(epoch_key + _GOLDEN_GAMMA * rounds[:, None])
    left_size = np.ceil(np.sqrt(size)).astype(np.uint64)
    right_size = (size.astype(np.uint64) + left_size - np.uint64(1)) // left_size

    image = _feistel(index.astype(np.uint64), left_size, right_size, round_keys).astype(np.int64)
    outside = np.flatnonzero(image >= size)
    while outside.size:
        again = _feistel(
            image[outside].astype(np.uint64), left_size[outside], right_size[outside], round_keys[:, outside]
        )
        image[outside] = again.astype(np.int64)
        outside = outside[image[outside] >= size[outside]]
    return image


def _feistel(
    value: NDArray[np.uint64],
    left_size: NDArray[np.uint64],
    right_size: NDArray[np.uint64],
    round_keys: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    left, right = np.divmod(value, right_size)
    for position in range(0, ROUNDS, 2):
        left = (left + _mix(right ^ round_keys[position]) % left_size) % left_size
        right = (right + _mix(left ^ round_keys[position + 1]) % right_size) % right_size
    return left * right_size + right


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
