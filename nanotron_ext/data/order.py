"""Every source as an endless stream of tokens: epoch after epoch of its chunks, in an order that is computed.

A chunk is what shuffling moves as one piece. Where windows are shorter than a chunk, the windows of a group of chunks
that follow each other in the stream are shuffled once more, so that neighbours in a text are no neighbours in a batch.
Positions in the stream are counted in tokens: a later run may read on in windows of another length from the next group
on, and every chunk before it has been read exactly once per epoch.
"""

import numpy as np
from numpy.typing import NDArray

from nanotron_ext.data.permutation import permute

MAX_GROUP_CHUNKS = 256
MIN_GROUPS = 64
"""Groups per epoch. A change of the window length skips less than one: 1/64 of an epoch, and at most 256 chunks."""
_WITHIN_GROUPS = np.uint64(0xD1B54A32D192ED03)  # any odd constant: the two shuffles must not share their keys


class TokenOrder:
    """The streams of several sources: `chunks` and `keys` are `[sources]`, chunks are `chunk_tokens` long."""

    def __init__(self, chunks: NDArray[np.int64], chunk_tokens: int, keys: NDArray[np.uint64]) -> None:
        self.chunks = chunks
        self.chunk_tokens = chunk_tokens
        self.epoch_tokens = chunks * chunk_tokens
        self._keys = keys
        self._group_chunks = np.clip(chunks // MIN_GROUPS, 1, MAX_GROUP_CHUNKS)

    def window(self, source: NDArray[np.int64], position: NDArray[np.int64], sequence_length: int) -> NDArray[np.int64]:
        """Where the windows at these positions of the streams lie, as first token among the tokens of the chunks.

        `source` and `position` are `[windows]`; positions are multiples of `sequence_length`, which divides
        `chunk_tokens`.
        """
        chunks = self.chunks[source]
        place, offset = np.divmod(position, self.chunk_tokens)
        epoch, place = np.divmod(place, chunks)
        if sequence_length < self.chunk_tokens:
            place, offset = self._shuffled_in_group(source, epoch, place, offset, sequence_length)
        return permute(place, chunks, self._keys[source], epoch) * self.chunk_tokens + offset

    def _shuffled_in_group(
        self,
        source: NDArray[np.int64],
        epoch: NDArray[np.int64],
        place: NDArray[np.int64],
        offset: NDArray[np.int64],
        sequence_length: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Place and offset of the window that stands at this place and offset when the group's are shuffled."""
        chunks, group_chunks = self.chunks[source], self._group_chunks[source]
        windows_per_chunk = self.chunk_tokens // sequence_length
        group, within = np.divmod(place, group_chunks)
        first = group * group_chunks
        windows = np.minimum(group_chunks, chunks - first) * windows_per_chunk
        groups_per_epoch = -(-chunks // group_chunks)
        shuffled = permute(
            within * windows_per_chunk + offset // sequence_length,
            windows,
            self._keys[source] ^ _WITHIN_GROUPS,
            epoch * groups_per_epoch + group,
        )
        within, number = np.divmod(shuffled, windows_per_chunk)
        return first + within, number * sequence_length

    def next_group(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """The first position from `position` on at which a group begins; both `[sources]`."""
        epoch, token = np.divmod(position, self.epoch_tokens)
        group_tokens = self._group_chunks * self.chunk_tokens
        return epoch * self.epoch_tokens + np.minimum(-(-token // group_tokens) * group_tokens, self.epoch_tokens)
