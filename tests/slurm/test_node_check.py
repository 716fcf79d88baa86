"""Who gets the blame: nodes that meet in pairs on a ring, with some of them bad."""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from slurm import node_check
from slurm.node_check import BadNode, Unfinished, check_local, check_node, ring_neighbours

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
    ("count", "slow_network", "dead_network", "slow_alone", "gone", "blamed", "unfinished"),
    [
        (4, {2}, set(), set(), set(), {2}, set()),
        (3, {1}, set(), set(), set(), {1}, set()),
        (8, {0, 5}, set(), set(), set(), {0, 5}, set()),
        (4, set(), set(), {3}, set(), {3}, set()),
        (5, set(), set(), set(), {1}, set(), set()),  # it cannot say so itself; its neighbours are fine
        (2, set(), set(), {0}, set(), {0}, set()),
        (2, set(), set(), set(), {0}, set(), set()),
        (2, {0}, set(), set(), set(), {0, 1}, set()),  # two nodes cannot tell which of them it is
        (4, set(), set(), set(), set(), set(), set()),
        # A pair without a result blames a node only if its neighbours get results elsewhere.
        (4, set(), {2}, set(), set(), {2}, set()),
        (3, set(), {1}, set(), set(), {1}, set()),
        (2, set(), {0}, set(), set(), set(), {0, 1}),
        (4, set(), {0, 1, 2, 3}, set(), set(), set(), {0, 1, 2, 3}),  # a busy machine, a busy switch
    ],
)
def test_the_bad_nodes_are_blamed_and_no_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    slow_network: set[int],
    dead_network: set[int],
    slow_alone: set[int],
    gone: set[int],
    blamed: set[int],
    unfinished: set[int],
) -> None:
    monkeypatch.setattr(node_check, "NODE_SECONDS", 0.5)
    monkeypatch.setattr(node_check, "PAIR_SECONDS", -4.5)  # half a second for a partner to come

    def in_processes(check: Any, ranks: list[int], world: int, store: Path, *_: Any) -> None:
        nodes = {int(part) for part in store.name.split("-")[1:]}
        if nodes & (slow_alone if check is check_local else slow_network):
            raise BadNode("slow")
        if check is not check_local and nodes & dead_network:
            raise Unfinished("no answer")

    monkeypatch.setattr(node_check, "in_processes", in_processes)

    def found(index: int) -> type[Exception] | None:
        try:
            check_node(tmp_path, index, count, OPTIONS)
        except (BadNode, Unfinished) as error:
            return type(error)
        return None

    present = [index for index in range(count) if index not in gone]
    with ThreadPoolExecutor(count) as pool:
        by_node = dict(zip(present, pool.map(found, present), strict=True))
    assert {index for index, kind in by_node.items() if kind is BadNode} == blamed
    assert {index for index, kind in by_node.items() if kind is Unfinished} == unfinished


def _hang(*_: Any) -> None:
    import time

    time.sleep(60)


def _die(*_: Any) -> None:
    import os

    os._exit(7)


def _lose_the_other_node(*_: Any) -> None:
    raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:1955")


def _fail(*_: Any) -> None:
    raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nmore")


@pytest.mark.parametrize(
    ("check", "kind", "message"),
    [
        (_hang, Unfinished, "took longer than 0.2 s"),
        (_lose_the_other_node, Unfinished, "RuntimeError: .*Connection closed by peer"),
        (_die, BadNode, "died with exit code 7"),
        (_fail, BadNode, "RuntimeError: CUDA error: uncorrectable ECC error encountered$"),
    ],
)
def test_a_time_out_is_not_a_failure(tmp_path: Path, check: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        node_check.in_processes(check, [0, 1], 2, tmp_path / "store", OPTIONS, 0.2 if check is _hang else 20)


@pytest.mark.parametrize(("error", "code"), [(None, 0), (BadNode("slow"), 1), (Unfinished("no answer"), 124)])
def test_exit_codes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception | None,
    code: int,
) -> None:
    def check_node(*_: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr(node_check, "check_node", check_node)
    monkeypatch.setattr(sys, "argv", ["node_check"])
    monkeypatch.setenv("NODE_CHECK_FOLDER", str(tmp_path))
    assert node_check.main() == code
    assert capsys.readouterr().err.strip() == (str(error) if error else "")


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 8), ("cpu", 0)])
def test_a_job_on_cpus_asks_for_no_gpus_whatever_its_header_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, gpus: int
) -> None:
    asked = []
    monkeypatch.setattr(node_check, "check_node", lambda folder, index, count, options: asked.append(options.gpus))
    monkeypatch.setattr(sys, "argv", ["node_check"])
    monkeypatch.setenv("NODE_CHECK_FOLDER", str(tmp_path))
    monkeypatch.setenv("JOB_DEVICE", device)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    assert node_check.main() == 0 and asked == [gpus]
