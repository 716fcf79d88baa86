"""Decontamination: documents that contain a passage of an evaluation set are dropped.

A passage is NGRAM_WORDS consecutive words (datapipes.words). Evaluation sets are JSON lines files, one per benchmark
and named after it, every string of a row being text of the benchmark; strings shorter than a passage are left out,
because everyday phrases would match them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from datapipes.errors import SourceError
from datapipes.words import words_of
from foundation.json_text import loads

NGRAM_WORDS = 12
_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplication by its powers loses nothing modulo 2^64

Hashes = npt.NDArray[np.uint64]


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def ngram_hashes(text: str) -> Hashes:
    """64-bit hashes of all passages, in their order; empty for a text of fewer words."""
    words = words_of(text)
    count = len(words) - NGRAM_WORDS + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    hashes = np.fromiter(map(_word_hash, words), dtype=np.uint64, count=len(words))
    total = np.zeros(count, dtype=np.uint64)
    for position in range(NGRAM_WORDS):  # polynomial in _BASE, modulo 2^64
        total = total * np.uint64(_BASE) + hashes[position : position + count]
    return total


@dataclass(frozen=True)
class BenchmarkIndex:
    """Passages of all benchmarks: `hashes` is sorted, and hashes[i] belongs to the benchmark names[owners[i]]."""

    names: list[str]
    hashes: Hashes
    owners: npt.NDArray[np.uint16]
    parts: dict[str, str]  # benchmark -> SHA-256 of its own passages

    @cached_property
    def sha256(self) -> str:
        """What decides which documents are dropped."""
        return hashlib.sha256(self.hashes.tobytes()).hexdigest()

    def first_match(self, text: str) -> str | None:
        """The name of a benchmark of which the text contains a passage."""
        wanted = ngram_hashes(text)
        if not len(wanted) or not len(self.hashes):
            return None
        positions = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        found = np.flatnonzero(self.hashes[positions] == wanted)
        return self.names[self.owners[positions[found[0]]]] if len(found) else None


def build_index(folder: Path) -> BenchmarkIndex:
    """Index the evaluation sets `<folder>/<benchmark>.jsonl`.

    Raises:
        SourceError: if there is none, or one cannot be read.
    """
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise SourceError(f"There is no evaluation set (<benchmark>.jsonl) in {folder}. Correct --benchmarks.")
    per_benchmark = [np.unique(_benchmark_hashes(path)) for path in paths]
    names = [path.stem for path in paths]
    sums = [hashlib.sha256(part.tobytes()).hexdigest() for part in per_benchmark]
    hashes = np.concatenate(per_benchmark)
    owners = np.repeat(np.arange(len(paths), dtype=np.uint16), [len(part) for part in per_benchmark])
    unique, first = np.unique(hashes, return_index=True)
    return BenchmarkIndex(names, unique, owners[first], dict(zip(names, sums, strict=True)))


def _benchmark_hashes(path: Path) -> Hashes:
    parts = [np.empty(0, dtype=np.uint64)]
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = loads(line)
            except ValueError as error:
                raise SourceError(f"Line {number} of {path} is not JSON: {error}.") from None
            parts += [ngram_hashes(text) for text in _strings(row)]
    return np.concatenate(parts)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


class Decontaminate(BaseFilter):
    """Drops contaminated documents; the reason names the benchmark."""

    name = "Decontaminate"

    def __init__(self, index: BenchmarkIndex) -> None:
        super().__init__()
        self.index = index

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        benchmark = self.index.first_match(doc.text)
        return True if benchmark is None else (False, f"in {benchmark}")
