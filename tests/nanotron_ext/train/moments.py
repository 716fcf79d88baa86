"""Stop signals at named moments of a run's life: a rank comes there, waits, and is sent the signal while it does."""

import importlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from foundation.recipe import Recipe
from tests.nanotron_ext.ranks import CONTEXT, free_port, set_rank
from tests.nanotron_ext.tiny_run import RECIPE_PATH, overrides

STOPPED, FINISHED = 75, 0


@dataclass(frozen=True)
class Moment:
    """A call, of the first rank or of any."""

    place: str  # module:name, as whoever calls it finds it
    number: int = 1  # which of the process's calls
    first_rank_only: bool = False
    saves: bool = True  # whether a checkpoint of the step that is under way comes of it
    exit_code: int = STOPPED


MOMENTS = {
    "checks": Moment("nanotron_ext.train.startup:check_data", saves=False),
    "connecting": Moment("torch.distributed:init_process_group", saves=False),
    "comparing": Moment("nanotron_ext.train.agreement:refuse", saves=False),
    "building": Moment("nanotron_ext.train.step:build_model", saves=False),
    "loading": Moment("nanotron_ext.train.persistence:_load", saves=False),
    "preparing": Moment("nanotron_ext.train.run:Validation.__init__"),
    "first step": Moment("nanotron_ext.train.step:TrainState.train_step"),
    "training": Moment("nanotron_ext.train.step:TrainState.train_step", number=3),
    "evaluation": Moment("nanotron_ext.train.step:TrainState.evaluate"),
    "recording": Moment("foundation.journal:StepLog.write", number=2, first_rank_only=True),
    "save": Moment("nanotron_ext.train.persistence:save_shard", first_rank_only=True),
    "commit": Moment("nanotron_ext.train.persistence:finish_checkpoint", first_rank_only=True),
    "upload": Moment("nanotron_ext.storage:RemoteCheckpoints._put", first_rank_only=True),
    "last upload": Moment(
        "nanotron_ext.storage:Uploader.finish", first_rank_only=True, saves=False, exit_code=FINISHED
    ),
    "closing": Moment("nanotron_ext.train.run:Journal.close", first_rank_only=True, saves=False, exit_code=FINISHED),
}


def pause_at(moment: Moment, connection: Connection) -> None:
    """Have this process say when it is there, and go on when it is told to."""
    module, _, name = moment.place.partition(":")
    owner: Any = importlib.import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), 0

    def paused(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == moment.number:
            connection.send("there")
            connection.recv()
        return original(*arguments, **named)

    setattr(owner, last, paused)


def rank_main(
    rank: int,
    world_size: int,
    port: int,
    arguments: list[str],
    log: Path,
    moment: Moment | None,
    connection: Connection,
) -> None:
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    set_rank(rank, world_size, port)
    if moment is not None:
        pause_at(moment, connection)
    sys.argv = ["nanotron_ext.train", RECIPE_PATH, *arguments]
    from nanotron_ext.train.__main__ import main

    sys.exit(main())


@dataclass(frozen=True)
class Ending:
    came_there: bool  # to the moment
    codes: list[int | None]
    log: str


def run_and_stop(
    root: Path,
    recipe: Recipe,
    changes: dict[str, object],
    moment: Moment | None,
    number: signal.Signals = signal.SIGTERM,
    victim: int = 0,
    to_all: bool = False,
    limit_seconds: float = 60,
) -> Ending:
    """One attempt, in which rank `victim` comes to the moment and it, or every rank, is sent the signal.

    When a rank ends, the others are sent SIGTERM, as torchrun would.
    """
    world_size, port = recipe.parallelism.world_size, free_port()
    log, (mine, theirs) = root / f"{recipe.general.run}.log", CONTEXT.Pipe()
    log.unlink(missing_ok=True)
    values = overrides(root, **changes)
    processes = []
    for rank in range(world_size):
        at = moment if rank == victim else None
        process = CONTEXT.Process(target=rank_main, args=(rank, world_size, port, values, log, at, theirs))
        process.start()
        processes.append(process)
    came_there = is_ending = False
    deadline = time.monotonic() + limit_seconds
    while any(process.is_alive() for process in processes):
        assert time.monotonic() < deadline, f"still running after {limit_seconds} s: {log.read_text()}"
        if not came_there and mine.poll(0.02):
            came_there = True
            _send(number, processes if to_all else [processes[victim]])
            mine.send("go on")
        if not is_ending and not all(process.is_alive() for process in processes):
            is_ending = True
            time.sleep(0.3)  # torchrun looks every 0.1 s; by then the others may have noticed it themselves
            _send(signal.SIGTERM, processes)
        time.sleep(0.02)
    return Ending(came_there, [process.exitcode for process in processes], log.read_text())


def _send(number: signal.Signals, processes: list[Any]) -> None:
    """To those that have come to their first line."""
    for process in processes:
        while process.is_alive() and not catches_sigterm(process.pid):
            time.sleep(0.01)
        if process.is_alive():
            os.kill(process.pid, number)


def catches_sigterm(pid: int) -> bool:
    """Whether the process has a handler of its own, from its first line on."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next((line for line in status.splitlines() if line.startswith("SigCgt")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
