"""Byte ranges found by arithmetic, against whole tensors that are cut and put together element by element."""

import itertools
import random

import numpy as np
import pytest

from nanotron_ext.placement import Index, Placement, StoredPart, overlaps


def split_by_rows(rows: list[int], columns: int | None, ranks: int) -> list[Placement]:
    """As queries, keys and values are: of each block of rows, every rank has its share."""
    tail, whole_tail = ((), ()) if columns is None else (((0, columns),), (columns,))
    placements = []
    for rank in range(ranks):
        pieces, here, there = [], 0, 0
        for block in rows:
            share = block // ranks
            first = there + rank * share
            pieces.append((((here, here + share), *tail), ((first, first + share), *tail)))
            here, there = here + share, there + block
        placements.append(Placement((sum(rows), *whole_tail), (here, *whole_tail), tuple(pieces)))
    return placements


def split_by_columns(rows: int, columns: int, ranks: int) -> list[Placement]:
    share = columns // ranks
    bounds = [((0, rows), (rank * share, (rank + 1) * share)) for rank in range(ranks)]
    return [Placement((rows, columns), (rows, share), ((((0, rows), (0, share)), own),)) for own in bounds]


def cut(whole: np.ndarray, placement: Placement) -> np.ndarray:
    local = np.full(placement.local_shape, -1)
    for mine, theirs in placement.pieces:
        local[tuple(slice(*b) for b in mine)] = whole[tuple(slice(*b) for b in theirs)]
    return local.ravel()


def in_pieces(total: int, rng: random.Random) -> list[tuple[int, int]]:
    ends = sorted({0, total, *(rng.randrange(total + 1) for _ in range(rng.randrange(4)))})
    return list(itertools.pairwise(ends))


def layouts(ranks: int) -> dict[str, list[Placement]]:
    return {
        "packed rows": split_by_rows([8, 4, 4], 6, ranks),
        "columns": split_by_columns(6, 8, ranks),
        "vector": split_by_rows([12], None, ranks),
    }


@pytest.mark.parametrize("kind", ["packed rows", "columns", "vector"])
@pytest.mark.parametrize("seed", range(5))
def test_every_part_of_any_layout_is_found_in_any_other_one(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    for writers in (1, 2, 4):
        stored = layouts(writers)[kind]
        whole = np.arange(int(np.prod(stored[0].shape))).reshape(stored[0].shape)
        files = [
            (StoredPart("s", 0, start, stop - start, placement), cut(whole, placement)[start:stop])
            for placement in stored
            for start, stop in in_pieces(int(np.prod(placement.local_shape)), rng)
        ]
        for readers in (1, 2, 4):
            for wanted in layouts(readers)[kind]:
                expected = cut(whole, wanted)
                start = rng.randrange(len(expected))
                elements = rng.randrange(1, len(expected) - start + 1)
                got = np.full(elements, -1)
                for part, content in files:
                    for there, here, length in overlaps(wanted, start, elements, part).tolist():
                        assert (got[here : here + length] == -1).all()  # nothing is read twice
                        got[here : here + length] = content[there : there + length]
                assert (got == expected[start : start + elements]).all()


def test_rows_that_follow_each_other_are_one_read() -> None:
    whole = Placement.whole((1000, 64))
    half = split_by_rows([1000], 64, 2)[1]
    assert overlaps(half, 0, 32_000, StoredPart("s", 0, 0, 64_000, whole)).tolist() == [[32_000, 0, 32_000]]
    assert len(overlaps(split_by_columns(1000, 64, 2)[1], 0, 32_000, StoredPart("s", 0, 0, 64_000, whole))) == 1000


@pytest.mark.parametrize(
    "part", [["w", 0, -1], ["w", -1, 1], ["w", 0, 1.5], ["v", 0, 1], ["w", 0], 3, ["w", "0", 1], ["w", True, 1]]
)
def test_an_index_that_is_none_is_refused(part: object) -> None:
    placement = Placement.whole((2,)).to_json()
    content = {"placements": {"pp0-tp0": {"w": placement}}, "shards": {"pp0-tp0-dp0": [part]}}
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        _ = Index(content).parts
