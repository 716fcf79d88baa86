"""The computed order: bijective, different in every epoch, and random to the eye of a statistic."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanotron_ext.data.permutation import permute, source_key

MASK = 2**64 - 1


def mix(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def reference(index: int, size: int, key: int, epoch: int) -> int:
    """The same network in Python's integers."""
    gamma = 0x9E3779B97F4A7C15
    epoch_key = mix((key + gamma * epoch) & MASK)
    left_size = math.isqrt(size - 1) + 1
    right_size = -(-size // left_size)
    value = index
    while True:
        left, right = divmod(value, right_size)
        for turn in range(1, 5):
            round_key = mix((epoch_key + gamma * turn) & MASK)
            if turn % 2:
                left = (left + mix(right ^ round_key)) % left_size
            else:
                right = (right + mix(left ^ round_key)) % right_size
        value = left * right_size + right
        if value < size:
            return value


def order(size: int, key: int, epoch: int = 0) -> np.ndarray:
    ones = np.ones(size, np.int64)
    return permute(np.arange(size), ones * size, np.full(size, key, np.uint64), ones * epoch)


@pytest.mark.parametrize("size", [*range(1, 70), 999, 1000, 1001, 100_003])
def test_every_place_once(size: int) -> None:
    for epoch in (0, 1, 7):
        assert np.array_equal(np.sort(order(size, source_key(6, "web"), epoch)), np.arange(size))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_matches_exact_integers_at_any_size(data: st.DataObject) -> None:
    rows = data.draw(
        st.lists(
            st.integers(1, 2**40).flatmap(
                lambda size: st.tuples(
                    st.integers(0, size - 1), st.just(size), st.integers(0, MASK), st.integers(0, 10**6)
                )
            ),
            min_size=1,
            max_size=8,
        )
    )
    index, size, key, epoch = zip(*rows, strict=True)
    images = permute(np.array(index), np.array(size), np.array(key, np.uint64), np.array(epoch))
    assert images.tolist() == [reference(*row) for row in rows]


def test_successive_elements_are_independent() -> None:
    """Chi-squared of (element, next element) in 20 x 20 cells: 399 degrees of freedom, standard deviation 28."""
    size = 200_003
    cells = order(size, source_key(6, "web")) * 20 // size
    observed = np.bincount(cells[:-1] * 20 + cells[1:], minlength=400)
    expected = (size - 1) / 400
    assert abs(((observed - expected) ** 2 / expected).sum() - 399) < 5 * 28


@pytest.mark.parametrize(
    ("one", "other"),
    [((6, "web", 0), (6, "web", 1)), ((6, "web", 0), (6, "code", 0)), ((6, "web", 0), (7, "web", 0))],
    ids=["epoch", "source", "seed"],
)
def test_orders_differ(one: tuple[int, str, int], other: tuple[int, str, int]) -> None:
    """Two independent orders of 10,000 share about one place; more than 10 happens once in 100 million."""
    first, second = (order(10_000, source_key(seed, name), epoch) for seed, name, epoch in (one, other))
    assert (first == second).sum() <= 10
