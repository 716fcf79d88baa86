"""Streams of tokens: every chunk once per epoch whatever the windows, and runs that go on in other windows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanotron_ext.data.order import MAX_GROUP_CHUNKS, MIN_GROUPS, TokenOrder
from nanotron_ext.data.permutation import source_key

CHUNK_TOKENS = 24
WINDOW_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 24)


def order_of(*chunks: int, chunk_tokens: int = CHUNK_TOKENS) -> TokenOrder:
    keys = np.array([source_key(5, str(number)) for number in range(len(chunks))], np.uint64)
    return TokenOrder(np.array(chunks), chunk_tokens, keys)


def windows(order: TokenOrder, source: int, first: int, last: int, length: int) -> list[int]:
    """First tokens of the windows at the positions from `first` to `last`."""
    positions = np.arange(first, last, length)
    return order.window(np.full(len(positions), source), positions, length).tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=4), st.sampled_from(WINDOW_LENGTHS), st.integers(0, 3))
def test_an_epoch_is_every_window_once(chunks: list[int], length: int, epoch: int) -> None:
    order = order_of(*chunks)
    for source, count in enumerate(chunks):
        tokens = count * CHUNK_TOKENS
        seen = windows(order, source, epoch * tokens, (epoch + 1) * tokens, length)
        assert sorted(seen) == list(range(0, tokens, length))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 700),
    st.lists(st.tuples(st.sampled_from(WINDOW_LENGTHS), st.integers(0, 4000)), min_size=2, max_size=4),
)
def test_runs_of_other_windows_go_on_without_reading_a_token_twice(count: int, runs: list[tuple[int, int]]) -> None:
    """Each run reads some windows and hands its position on: within an epoch nothing comes twice, little is skipped."""
    order = order_of(count)
    epoch_tokens = count * CHUNK_TOKENS
    group_tokens = CHUNK_TOKENS * min(max(count // MIN_GROUPS, 1), MAX_GROUP_CHUNKS)
    read: dict[int, list[int]] = {}
    position = 0
    for length, samples in runs:
        start = int(order.next_group(np.array([position]))[0])
        assert 0 <= start - position < group_tokens
        position = start
        for first in windows(order, 0, position, position + samples * length, length):
            read.setdefault(position // epoch_tokens, []).extend(range(first, first + length))
            position += length
    for tokens in read.values():
        assert len(set(tokens)) == len(tokens)
        assert all(0 <= token < epoch_tokens for token in (min(tokens), max(tokens)))


def test_neighbours_in_the_text_are_no_neighbours_in_the_stream() -> None:
    """256 chunks of 16 windows to a group: text would have 15 of 16 windows followed by their neighbour."""
    order = order_of(MIN_GROUPS * MAX_GROUP_CHUNKS, chunk_tokens=16)
    seen = np.array(windows(order, 0, 0, 16 * MAX_GROUP_CHUNKS * 16, 1))
    assert np.count_nonzero(np.diff(seen) == 1) < 0.002 * len(seen)


def test_the_longest_windows_are_in_the_order_of_the_chunks() -> None:
    """Without shorter windows a chunk is a window: the order does not depend on how groups are made."""
    order = order_of(50)
    assert [first // CHUNK_TOKENS for first in windows(order, 0, 0, 50 * CHUNK_TOKENS, CHUNK_TOKENS)] != list(range(50))
    grouped = [first // CHUNK_TOKENS for first in windows(order, 0, 0, 50 * CHUNK_TOKENS, 4)]
    chunks = [first // CHUNK_TOKENS for first in windows(order, 0, 0, 50 * CHUNK_TOKENS, CHUNK_TOKENS)]
    assert grouped == [chunk for chunk in chunks for _ in range(CHUNK_TOKENS // 4)]


@pytest.mark.parametrize("length", [8, 24])
def test_positions_of_trillions_are_exact(length: int) -> None:
    order = order_of(2_900_000_000, chunk_tokens=24)
    far = 24 * 2_900_000_000 * 3
    seen = windows(order, 0, far - 5 * length, far + 5 * length, length)
    assert all(0 <= first < 24 * 2_900_000_000 and first % length == 0 for first in seen)
    assert order.next_group(np.array([far])).tolist() == [far]
    assert order.next_group(np.array([far + 1])).tolist() == [far + 24 * MAX_GROUP_CHUNKS]
