"""Who is named when one of eight ranks stops, and the others stand in ordinary launches, as the hosts of GPUs do."""

import functools
import json
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from nanotron import distributed as nanotron_distributed
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.recipe import Recipe
from nanotron_ext.train.collectives import causes
from nanotron_ext.train.flight_recorder import PREFIX
from nanotron_ext.train.heartbeat import EXIT_CODE, Heartbeat, Pulse
from tests.nanotron_ext.ranks import CONTEXT, free_port, set_rank
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

FATAL_STEP = 3
COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")


class Device(TorchDispatchMode):
    """Collective operations return at once, as on a GPU, and the next ordinary operation waits for them."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[torch.distributed.Work] = []
        self.stops = self.is_on = False
        for name in COLLECTIVES:
            enqueue = functools.partial(self.enqueue, getattr(torch.distributed, name))
            for module in (torch.distributed, nanotron_distributed):
                setattr(module, name, enqueue)

    def __enter__(self) -> "Device":
        self.is_on = True
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.is_on = False

    def enqueue(self, operation: Any, *arguments: Any, async_op: bool = False, **named: Any) -> Any:
        if not self.is_on:  # the start is no part of it
            return operation(*arguments, async_op=async_op, **named)
        work = operation(*arguments, async_op=True, **named)
        self.pending.append(work)
        return work if async_op else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "c10d":
            self.launch(func)
        return func(*args, **(kwargs or {}))

    def launch(self, func: Any) -> None:
        if self.stops and func.__name__.startswith("mul"):
            time.sleep(600)
        while self.pending:
            self.pending.pop(0).wait()


# Two pipelines of two stages, each of two tensor-parallel ranks: ranks 0 to 3 are the first stage, 0, 1, 4, 5 the first
# replica. Counts are of the groups "tp of ...", "dp of ..." and transfers, as torch keeps them.
def counts(**changes: dict[str, int]) -> dict[int, dict[str, int]]:
    """All ranks have entered ten operations of each of their groups, but for `changes`, `r5={"group tp4": 9}`."""
    found: dict[int, dict[str, int]] = {}
    for rank in range(8):
        stage, replica, part = rank // 4, rank // 2 % 2, rank % 2
        groups = ["world", f"tp{rank - part}", f"dp{stage * 4 + part}"]
        first, last = replica * 2 + part, replica * 2 + part + 4
        found[rank] = {f"group {name}": 10 for name in groups} | {f"{first} to {last}": 6, f"{last} to {first}": 6}
    for name, changed in changes.items():
        assert changed.keys() <= found[int(name[1:])].keys()
        found[int(name[1:])] |= changed
    return found


@pytest.mark.parametrize(
    ("of_ranks", "expected"),
    [
        (counts(), []),
        (counts(r5={"group world": 9}), [5]),  # all others have entered the step's last operation
        # Its partner waits in the tensor-parallel group, who waits for the partner waits for it in the end.
        (counts(r5={"group tp4": 9, "group world": 9}, r4={"group world": 9}), [5]),
        # The second stage waits for a first one that sends nothing, the replica beside it for both.
        (counts(r4={"0 to 4": 7, "group dp4": 9}, r0={"group dp0": 9}, r1={"group tp0": 9, "group dp1": 9}), [1]),
        # What a sender has sent and nobody has taken yet is no reason to wait.
        (counts(r0={"0 to 4": 7, "group world": 9}), [0]),
        (counts(r2={"group world": 9}, r7={"group world": 9}), [2, 7]),
        (counts(r0={"group tp0": 9}, r1={"group dp1": 9}, r3={"group world": 9}), [0, 1, 3]),  # in a circle
    ],
)  # fmt: skip
def test_who_is_waited_for_and_waits_for_nobody(of_ranks: dict[int, dict[str, int]], expected: list[int]) -> None:
    assert causes(of_ranks) == expected


class Store:
    """What ranks have told: where their programs stand, and what they have entered."""

    def __init__(self, stacks: list[str], entered: dict[int, dict[str, int]]) -> None:
        self.accounts = {
            f"account/{rank}": json.dumps({"waits": False, "stack": stack, "entered": entered[rank]})
            for rank, stack in enumerate(stacks)
        }

    def check(self, keys: list[str]) -> bool:
        return all(key in self.accounts for key in keys)

    def get(self, key: str) -> str:
        return self.accounts[key]


GPU_WAITS = [  # where programs stood whose device was busy
    "torch/nn/functional.py in linear",
    "torch/nn/functional.py in scaled_dot_product_attention",
    "nanotron_ext/model/elementwise.py in launch",
    "nanotron_ext/model/transfer.py in to_device",
    "torch/_tensor.py in item",
    "torch/cuda/__init__.py in synchronize",
    "nanotron_ext/train/step.py in train_step",
    "torch/optim/adamw.py in _fused_adamw",
]


@pytest.mark.parametrize("victim", [3, None])
def test_hosts_that_wait_for_their_gpus_are_not_blamed(victim: int | None) -> None:
    """Nor is any rank where all have entered the same: then it is a device or the network."""
    watch = Heartbeat.__new__(Heartbeat)
    watch._world_size, watch._is_on_gpu = 8, True
    watch._store = Store(GPU_WAITS, counts(**({} if victim is None else {f"r{victim}": {"group world": 9}})))  # type: ignore[assignment]
    watch._last_heard = {rank: (Pulse(9, 5, "training", 20, 20, 18, "n1", rank), 0.0) for rank in range(8)}
    said = "\n".join(watch._suspects())
    if victim is None:
        assert said.startswith("All ranks have entered the same collective operations: a GPU, or the network")
        assert "is stuck" not in said and "Xid" in said
    else:
        assert re.findall(r"Rank (\d) is stuck", said) == [str(victim)] and GPU_WAITS[victim] in said
        assert said.endswith("The others (7) wait for it in collective operations.")


def rank_main(rank: int, port: int, recipe: Recipe, victim: int, log: Path) -> None:
    set_rank(rank, recipe.parallelism.world_size, port)
    from nanotron_ext.train.run import run
    from nanotron_ext.train.step import TrainState

    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    train_step, device = TrainState.train_step, Device()

    def step_on_device(state, batch, *arguments):  # type: ignore[no-untyped-def]
        device.stops = rank == victim and batch.step == FATAL_STEP
        with device:
            return train_step(state, batch, *arguments)

    TrainState.train_step = step_on_device  # type: ignore[method-assign]
    run(recipe)


@pytest.mark.parametrize("victim", [0, 5])
def test_the_one_of_eight_that_stops_is_named(victim: int, tmp_path: Path) -> None:
    """Each start of eight processes takes some seconds, the time-out four more."""
    prepare(tmp_path)
    recipe = tiny_recipe(
        tmp_path, parallelism="{dp: 2, pp: 2, tp: 2, hang_timeout_seconds: 4}", checkpoints__resume="never"
    )
    port, logs = free_port(), [tmp_path / f"{rank}.log" for rank in range(8)]
    processes = [
        CONTEXT.Process(target=rank_main, args=(rank, port, recipe, victim, log)) for rank, log in enumerate(logs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    printed = "".join(log.read_text() for log in logs)
    assert [process.exitcode for process in processes] == [EXIT_CODE] * 8, printed
    assert re.findall(r"Rank (\d) is stuck in step (\d)", printed) == [(str(victim), str(FATAL_STEP))], printed
    assert "The others (7) wait for it in collective operations." in printed
    stacks = {rank: (recipe.run_folder / "logs" / f"stacks-rank{rank}.txt").read_text() for rank in range(8)}
    in_launches = [rank for rank, text in stacks.items() if "in launch\n" in text]
    assert victim in in_launches and len(in_launches) > 2  # so that their stacks alone would have named several
    for rank in range(8):
        recorded = pickle.loads((recipe.run_folder / "logs" / f"{PREFIX}{rank}").read_bytes())
        assert {entry["profiling_name"] for entry in recorded["entries"]} >= {"gloo:all_reduce"}
