"""Deduplication within a source, with datatrove's blocks: signatures of all documents, then who duplicates whom.

The documents themselves are not stored in between: the last stage reads them once more, in the same order.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.hashing import HashConfig

from datapipes.words import NORMALISATION, PlainWords

# datatrove hands its xxhash functions text, which xxhash 4 refuses; its SHA-1 functions take it.
HASH = HashConfig(precision=64, hash_fc="sha1")
# FineWeb's parameters: 14 buckets of 8 hashes over 5-grams, which finds 92 % of pairs of Jaccard similarity 0.8.
MINHASH = MinhashConfig(5, num_buckets=14, hashes_per_bucket=8, norm_config=NORMALISATION, hash_config=HASH)


class Stage(NamedTuple):
    """One launch of an executor; its tasks wait for all tasks of the stage before."""

    name: str
    steps: list[PipelineStep]
    tasks: int


class DuplicateFilter(ExactDedupFilter):
    """Drops all but one of equal documents."""

    name = "duplicate"


class NearDuplicateFilter(MinhashDedupFilter):
    """Drops all but one of each cluster of near-duplicates."""

    name = "near-duplicate"


def document_text(document: Document) -> str:
    return document.text.strip()


EXACT = ExactDedupConfig(content_getter=document_text, hash_config=HASH)


def exact_stages(read: Callable[[], list[PipelineStep]], folder: Path, tasks: int) -> tuple[list[Stage], PipelineStep]:
    """The stages that find equal documents below `folder`, and the filter for the documents that `read` gives again."""
    signatures, duplicates = str(folder / "signatures"), str(folder / "duplicates")
    stages = [
        Stage("signatures", [*read(), ExactDedupSignature(signatures, EXACT)], tasks),
        Stage("duplicates", [ExactFindDedups(signatures, duplicates, EXACT)], 1),
    ]
    return stages, DuplicateFilter(duplicates, EXACT)


def minhash_stages(
    read: Callable[[], list[PipelineStep]], folder: Path, tasks: int
) -> tuple[list[Stage], PipelineStep]:
    """As `exact_stages`, for documents that share most of their 5-grams."""
    signatures, buckets, clusters = (str(folder / name) for name in ("signatures", "buckets", "clusters"))
    stages = [
        Stage("signatures", [*read(), MinhashDedupSignature(signatures, MINHASH, language=PlainWords())], tasks),
        Stage("buckets", [MinhashDedupBuckets(signatures, buckets, config=MINHASH)], MINHASH.num_buckets),
        Stage("clusters", [MinhashDedupCluster(buckets, clusters, MINHASH)], 1),
    ]
    return stages, NearDuplicateFilter(clusters)
