"""Token files on disk: windows of tokens by `pread`, document ends by binary search in the mapped index."""

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from foundation.shards.errors import ShardError
from foundation.shards.manifest import ShardFile, Source

MAX_OPEN_SHARDS = 256
"""Shards kept open at once; each holds two file descriptors, of the 1024 that a process usually may have."""


class Shard:
    """One open token file with its index; closed when the last reference is gone."""

    def __init__(self, path: str, token_bytes: int) -> None:
        self.path = path
        self.token_bytes = token_bytes
        self.descriptor = os.open(path, os.O_RDONLY)
        self.document_ends: NDArray[np.uint64] = np.asarray(np.memmap(f"{path}.index", "<u8", "r"))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read(self, start_token: int, destination: memoryview) -> None:
        """Fill `destination` with the bytes of the tokens from `start_token` on.

        `preadv` has no file position that threads or forked processes could race for, and maps no pages.

        Raises:
            ShardError: the file has become shorter since it was checked.
        """
        count = os.preadv(self.descriptor, [destination], start_token * self.token_bytes)
        if count != len(destination):
            raise ShardError([f"{self.path}: The file was truncated after the run had started. Restore it and resume."])


def _open_cached(source: Source, file: ShardFile, token_bytes: int) -> Shard:
    assert source.remote is not None
    return source.remote.open(file.name, file.sha256, file.index_sha256, lambda path: Shard(str(path), token_bytes))


class ShardSet:
    """The files of several sources of one tokenizer, each source seen as a row of chunks of `chunk_tokens` tokens.

    A chunk lies in one file and is followed by at least one more token, the label of its last one. What is left at the
    end of a file, at most `chunk_tokens` tokens, is dropped.

    Attributes:
        chunks: int64 `[sources]`, number of chunks.
        dropped_tokens: int64 `[sources]`, tokens that no chunk holds.
    """

    def __init__(self, sources: Sequence[Source], chunk_tokens: int) -> None:
        self.chunk_tokens = chunk_tokens
        files = [(source, file) for source in sources for file in source.manifest.files]
        chunks_per_file = np.array([(file.tokens - 1) // chunk_tokens for _, file in files], np.int64)
        files_per_source = [len(source.manifest.files) for source in sources]
        self._first_file = np.concatenate([[0], np.cumsum(files_per_source)[:-1]])
        self._first_chunk = np.concatenate([[0], np.cumsum(chunks_per_file)])
        self.chunks = np.add.reduceat(chunks_per_file, self._first_file)
        self.dropped_tokens = np.array([source.manifest.tokens for source in sources]) - self.chunks * chunk_tokens
        self._token_bytes = token_bytes = sources[0].manifest.token_bytes
        self._shard: Callable[[int], Shard]
        if sources[0].remote:
            # Not kept open: the cache could not get back the space of a file that it removed.
            self._shard = lambda number: _open_cached(*files[number], token_bytes)
        else:
            paths = [f"{source.folder}/{file.name}" for source, file in files]
            self._shard = functools.lru_cache(MAX_OPEN_SHARDS)(lambda number: Shard(paths[number], token_bytes))

    def locate(
        self, source: NDArray[np.int64], chunk_token: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """File, and first token in it, of the places `chunk_token` among the tokens of the source's chunks."""
        chunk, offset = np.divmod(chunk_token, self.chunk_tokens)
        chunk += self._first_chunk[self._first_file[source]]
        file = np.searchsorted(self._first_chunk, chunk, side="right") - 1
        return file, (chunk - self._first_chunk[file]) * self.chunk_tokens + offset

    def read(self, file: NDArray[np.int64], start: NDArray[np.int64], tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """Fill `tokens` `[windows, sequence_length + 1]` with the windows that begin at `start` of `file`, `[windows]`.

        The last token of a row is only the label of the one before. Returns where documents end, int64 `[ends]`, as
        exclusive ends in the windows of `sequence_length` tokens laid end to end; the end of a window is among them
        only if a document ends there.
        """
        windows, sequence_length = tokens.shape[0], tokens.shape[1] - 1
        row_bytes = tokens.shape[1] * self._token_bytes
        content = tokens.data.cast("B")
        narrow = None if self._token_bytes == tokens.itemsize else np.empty(tokens.shape[1], f"<u{self._token_bytes}")
        # Of the index's own type: a signed bound would make numpy convert the whole index to floating point.
        bounds = (start[:, None] + np.array([0, sequence_length])).astype(np.uint64)
        ends = []
        for window, (number, first) in enumerate(zip(file.tolist(), start.tolist(), strict=True)):
            shard = self._shard(number)
            if narrow is None:  # straight into place: at long windows, copies are all that costs
                shard.read(first, content[window * row_bytes : (window + 1) * row_bytes])
            else:
                shard.read(first, narrow.data.cast("B"))
                tokens[window] = narrow
            low, high = shard.document_ends.searchsorted(bounds[window], side="right").tolist()
            ends.append(shard.document_ends[low:high])
        shift = np.arange(windows) * sequence_length - start
        shifts = shift.repeat([len(window_ends) for window_ends in ends])
        return np.concatenate(ends).astype(np.int64) + shifts
