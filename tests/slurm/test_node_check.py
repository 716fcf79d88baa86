"""Who gets the blame: nodes that meet in pairs on a ring, with some of them bad."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from slurm import node_check
from slurm.node_check import BadNode, check_local, check_node, ring_neighbours

OPTIONS = argparse.Namespace(gpus=0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 48])
def test_every_node_meets_its_two_neighbours_and_nobody_waits_in_a_circle(count: int) -> None:
    meetings = [ring_neighbours(index, count) for index in range(count)]
    for index, pairs in enumerate(meetings):
        partners = {node for pair in pairs for node in pair} - {index}
        assert partners == {(index - 1) % count, (index + 1) % count} - {index}
    # Play it: a pair meets when it is next for both. All have to take place, in at most three rounds.
    rounds = 0
    while any(meetings):
        ready = {pairs[0] for pairs in meetings if pairs}
        meeting = [pair for pair in ready if all(meetings[node][:1] == [pair] for node in pair)]
        assert meeting
        for pair in meeting:
            for node in pair:
                meetings[node].pop(0)
        rounds += 1
    assert rounds <= 3


@pytest.mark.parametrize(
    ("count", "slow_network", "slow_alone", "gone", "blamed"),
    [
        (4, {2}, set(), set(), {2}),
        (3, {1}, set(), set(), {1}),
        (8, {0, 5}, set(), set(), {0, 5}),
        (4, set(), {3}, set(), {3}),
        (5, set(), set(), {1}, set()),  # it cannot say so itself; its neighbours are fine
        (2, set(), {0}, set(), {0}),
        (2, set(), set(), {0}, set()),
        (2, {0}, set(), set(), {0, 1}),  # two nodes cannot tell which of them it is
        (4, set(), set(), set(), set()),
    ],
)
def test_the_bad_nodes_are_blamed_and_no_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    slow_network: set[int],
    slow_alone: set[int],
    gone: set[int],
    blamed: set[int],
) -> None:
    monkeypatch.setattr(node_check, "NODE_SECONDS", 0.5)
    monkeypatch.setattr(node_check, "PAIR_SECONDS", -4.5)  # half a second for a partner to come

    def in_processes(check: Any, ranks: list[int], world: int, store: Path, *_: Any) -> None:
        nodes = {int(part) for part in store.name.split("-")[1:]}
        if nodes & (slow_alone if check is check_local else slow_network):
            raise BadNode("slow")

    monkeypatch.setattr(node_check, "in_processes", in_processes)

    def fails(index: int) -> bool:
        try:
            check_node(tmp_path, index, count, OPTIONS)
        except BadNode:
            return True
        return False

    present = [index for index in range(count) if index not in gone]
    with ThreadPoolExecutor(count) as pool:
        found = {index for index, failed in zip(present, pool.map(fails, present), strict=True) if failed}
    assert found == blamed


def _hang(*_: Any) -> None:
    import time

    time.sleep(60)


def _die(*_: Any) -> None:
    import os

    os._exit(7)


@pytest.mark.parametrize(("check", "message"), [(_hang, "took longer than 0.2 s"), (_die, "died with exit code 7")])
def test_a_check_that_hangs_or_dies_is_a_bad_node(tmp_path: Path, check: Any, message: str) -> None:
    with pytest.raises(BadNode, match=message):
        node_check.in_processes(check, [0, 1], 2, tmp_path / "store", OPTIONS, 0.2)
