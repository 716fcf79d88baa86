"""Reads byte ranges of a checkpoint's files into tensors, and compares files with their checksums on the way.

A rank reads the ranges that it holds and nothing else, save in files whose checksum it compares: of those it reads the
rest too. It is asked to for files that it holds anyway, so that a checksum costs no second pass over the disk.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foundation.json_text import loads
from foundation.limits import MAX_HEADER_BYTES

BLOCK_BYTES = 1 << 24
HELD_SHARE = 0.95  # of a file that a rank holds: then comparing its checksum costs at most 5 % more bytes

Advance = Callable[[int], None]  # told of every so many bytes that are done


class CutShortError(Exception):
    """A file that ends before what it should hold, or is not there."""


class Hasher:
    """SHA-256 of blocks, computed in a thread beside whatever brings or takes them; a block may not change meanwhile.

    hashlib lets other threads run meanwhile, so that the slower of disk and SHA-256 (1.0 GB/s a core, on one with SHA
    instructions that others used too) decides instead of their sum.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
        self._last: Future[None] | None = None

    def update(self, block: Any) -> None:
        """Waits for the block before the last one: at most two are under way."""
        before, self._last = self._last, self._thread.submit(self._digest.update, block)
        if before is not None:
            before.result()

    def hexdigest(self) -> str:
        self._thread.shutdown()
        return self._digest.hexdigest()


class FileReads:
    """What a rank reads of one file: runs of float32 elements behind its header, each into a place of a tensor."""

    def __init__(self) -> None:
        self._targets: list[torch.Tensor] = []
        self._runs: list[np.ndarray] = []

    def add(self, target: torch.Tensor, runs: np.ndarray) -> None:
        """`runs`: rows of (first element in the file, first element in the flat `target`, elements)."""
        number = np.full((len(runs), 1), len(self._targets))
        self._targets.append(target)
        self._runs.append(np.concatenate([runs, number], axis=1))

    @property
    def elements(self) -> int:
        return int(sum(runs[:, 2].sum() for runs in self._runs))

    def read(self, path: Path, data_start: int, advance: Advance, hasher: Hasher | None = None) -> None:
        """Fill the targets; with `hasher`, read and hash all of the file. `advance` is told of the bytes of both.

        Raises:
            CutShortError: when the file is missing or ends too early.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise CutShortError(str(error)) from None
        try:
            position = 0
            for start, view in self._views():
                begin = data_start + 4 * start
                if hasher is not None and begin > position:
                    _hash(descriptor, position, begin, hasher, advance)
                _fill(descriptor, begin, view, hasher)
                advance(view.nbytes)
                position = begin + view.nbytes
            if hasher is not None:
                _hash(descriptor, position, os.fstat(descriptor).st_size, hasher, advance)
        finally:
            os.close(descriptor)

    def _views(self) -> Any:
        """(First element in the file, where it goes), in the order of the file, at most BLOCK_BYTES each."""
        runs = np.concatenate(self._runs) if self._runs else np.empty((0, 4), dtype=np.int64)
        for start, first, elements, number in runs[np.argsort(runs[:, 0])].tolist():
            for done in range(0, elements, BLOCK_BYTES // 4):
                last = min(done + BLOCK_BYTES // 4, elements)
                yield start + done, self._targets[number][first + done : first + last]


def reads_by_file() -> defaultdict[str, FileReads]:
    return defaultdict(FileReads)


def read_header(path: Path) -> dict[str, Any]:
    """Of a safetensors file; raises ValueError or CutShortError for anything else."""
    try:
        with path.open("rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
            if length > size - 8:
                raise CutShortError(f"{path} ends within its header")
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"{path} has a header of {length:,} bytes")
            header: dict[str, Any] = loads(file.read(length))
    except OSError as error:
        raise CutShortError(str(error)) from None
    return header


def _fill(descriptor: int, position: int, view: torch.Tensor, hasher: Hasher | None) -> None:
    on_device = view.device.type != "cpu"
    # torch keeps a page-locked block until the device has taken the copy.
    landing = torch.empty(view.shape, dtype=view.dtype, pin_memory=True) if on_device else view
    content = landing.view(torch.uint8).numpy()
    _read_into(descriptor, position, content)
    if hasher is not None:
        hasher.update(content)
    if on_device:
        view.copy_(landing, non_blocking=True)


def _hash(descriptor: int, start: int, stop: int, hasher: Hasher, advance: Advance) -> None:
    for position in range(start, stop, BLOCK_BYTES):
        block = np.empty(min(BLOCK_BYTES, stop - position), dtype=np.uint8)
        _read_into(descriptor, position, block)
        hasher.update(block)
        advance(block.nbytes)


def _read_into(descriptor: int, position: int, block: np.ndarray) -> None:
    rest = block.data
    while rest:
        count = os.preadv(descriptor, [rest], position)
        if count == 0:
            raise CutShortError("it ends too early")
        rest, position = rest[count:], position + count
