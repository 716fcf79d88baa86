"""Which bytes of which file of a checkpoint a rank of any layout has to read.

A file holds, without gaps, flat parts of local tensors. Where they lie is the index in checkpoint.json:

    {"placements": {owner: {name: {"shape": ..., "local_shape": ..., "pieces": [[local bounds, whole bounds], ...]}}},
     "shards": {shard: [[name, first element of the flat local tensor, elements], ...]}}

A shard, `pp<stage>-tp<rank>-dp<replica>`, is one rank's files, one of each kind of state and all laid out alike; its
owner, `pp<stage>-tp<rank>`, stands for the replicas that hold parts of the same local tensors.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Bounds = tuple[tuple[int, int], ...]  # (start, stop) per dimension


@dataclass(frozen=True)
class Placement:
    """Which blocks of a whole tensor a local one holds, as (local, whole) bounds."""

    shape: tuple[int, ...]  # of the whole tensor
    local_shape: tuple[int, ...]
    pieces: tuple[tuple[Bounds, Bounds], ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> "Placement":
        bounds = tuple((0, size) for size in shape)
        return cls(shape, shape, ((bounds, bounds),))

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "Placement":
        """From JSON; raises KeyError, TypeError or ValueError for anything else than numbers in their places."""
        pieces = tuple((_bounds(local), _bounds(whole)) for local, whole in content["pieces"])
        placement = cls(_sizes(content["shape"]), _sizes(content["local_shape"]), pieces)
        if {len(bounds) for piece in pieces for bounds in piece} != {len(placement.shape)}:
            raise ValueError("bounds of another number of dimensions")
        return placement

    def to_json(self) -> dict[str, Any]:
        return {"shape": self.shape, "local_shape": self.local_shape, "pieces": self.pieces}


@dataclass(frozen=True)
class StoredPart:
    """Elements [start, start + elements) of a flattened local tensor, `offset` elements behind a file's header."""

    shard: str
    offset: int
    start: int
    elements: int
    placement: Placement


def owner_of(shard: str) -> str:
    return shard.rsplit("-dp", 1)[0]


class Index:
    """What the index of a checkpoint says; raises KeyError, TypeError or ValueError where it is none."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._shards: dict[str, list[Any]] = dict(content["shards"])
        self._placements: Mapping[str, Any] = content["placements"]
        self.elements = {shard: sum(_sizes([part[2] for part in parts])) for shard, parts in self._shards.items()}

    @cached_property
    def parts(self) -> dict[str, list[StoredPart]]:
        """Of each global tensor, all copies of it included."""
        placements = {
            (owner, name): Placement.parse(placement)
            for owner, by_name in self._placements.items()
            for name, placement in by_name.items()
        }
        found: dict[str, list[StoredPart]] = defaultdict(list)
        for shard, parts in self._shards.items():
            offset = 0
            for name, start, elements in parts:
                placement = placements[owner_of(shard), name]
                start, elements = _sizes((start, elements))
                found[name].append(StoredPart(shard, offset, start, elements, placement))
                offset += elements
        return dict(found)

    def one_copy(self, name: str, near: str) -> Iterator[StoredPart]:
        """The parts of a tensor without copies of them that other owners hold; those of owner `near` come first."""
        owners: dict[Any, str] = {}
        for part in self.parts[name]:
            owner = owner_of(part.shard)
            if part.placement.pieces not in owners or owner == near:
                owners[part.placement.pieces] = owner
        # Copies lie at other places of their owners' flat buffers and are cut elsewhere: their parts must not mix.
        return (part for part in self.parts[name] if owners[part.placement.pieces] == owner_of(part.shard))


def shard_index(parts: Iterable[tuple[str, int, int]]) -> list[list[Any]]:
    """A shard's entry from (name, first element, elements), in the order of its files."""
    return [list(part) for part in parts]


def index_of_headers(headers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The index of a checkpoint that has none, from its shards' safetensors headers."""
    placements: dict[str, dict[str, Any]] = defaultdict(dict)
    shards = {}
    for shard, header in headers.items():
        offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
        stored = {
            name: json.loads(header["__metadata__"][name]) for name in sorted(offsets, key=lambda name: offsets[name])
        }
        shards[shard] = shard_index(
            (name, placement["start"], (offsets[name][1] - offsets[name][0]) // 4) for name, placement in stored.items()
        )
        placements[owner_of(shard)] |= stored
    return {"placements": dict(placements), "shards": shards}


def overlaps(wanted: Placement, start: int, elements: int, part: StoredPart) -> np.ndarray:
    """What `part` holds of elements [start, start + elements) of the flattened local tensor that `wanted` describes.

    Rows of (first element there, counted from `part.start`; first element here, counted from `start`; elements), int64.
    """
    found = [
        _clipped(*run, start, elements, part)
        for mine in wanted.pieces
        for theirs in part.placement.pieces
        if (run := _shared_rows(wanted, mine, part.placement, theirs)) is not None
    ]
    return np.concatenate(found) if found else np.empty((0, 3), dtype=np.int64)


def _shared_rows(
    wanted: Placement, mine: tuple[Bounds, Bounds], stored: Placement, theirs: tuple[Bounds, Bounds]
) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Where the rows of the block that two pieces have in common begin, here and there, and their length."""
    (mine_local, mine_whole), (theirs_local, theirs_whole) = map(_two_dimensional, mine), map(_two_dimensional, theirs)
    (top, bottom), (left, right) = (
        (max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(mine_whole, theirs_whole, strict=True)
    )
    height, width = bottom - top, right - left
    if height <= 0 or width <= 0:
        return None
    columns = wanted.local_shape[-1], stored.local_shape[-1]
    first = [
        (top - whole[0][0] + local[0][0]) * line + left - whole[1][0] + local[1][0]
        for local, whole, line in zip((mine_local, theirs_local), (mine_whole, theirs_whole), columns, strict=True)
    ]
    if columns == (width, width):  # rows that follow each other on both sides are one
        height, width = 1, height * width
    rows = np.arange(height, dtype=np.int64)
    return first[0] + rows * columns[0], first[1] + rows * columns[1], width


def _clipped(
    here: np.ndarray, there: np.ndarray, width: int, start: int, elements: int, part: StoredPart
) -> np.ndarray:
    """Rows without what lies outside of the wanted range or of the stored part."""
    here, there = here - start, there - part.start
    first = np.maximum(0, np.maximum(-here, -there))
    last = np.minimum(width, np.minimum(elements - here, part.elements - there))
    runs = np.stack([there + first, here + first, last - first], axis=1)
    return runs[last > first]


def _two_dimensional(bounds: Bounds) -> Bounds:
    assert 1 <= len(bounds) <= 2, bounds  # parameters are matrices and vectors
    return bounds if len(bounds) == 2 else ((0, 1), *bounds)


def _bounds(content: Any) -> Bounds:
    return tuple((start, stop) for start, stop in map(_sizes, content))


def _sizes(content: Any) -> tuple[int, ...]:
    sizes = tuple(content)
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise ValueError(f"{content!r} are no sizes")
    return sizes
