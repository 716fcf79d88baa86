"""A rank that dies or hangs in any way ends the job, and the message says which rank, where, and why."""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from foundation.errors import UserError
from foundation.recipe import Recipe
from nanotron_ext.train.heartbeat import EXIT_CODE
from tests.nanotron_ext.ranks import CONTEXT, free_port, set_rank
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

TIMEOUT_SECONDS = 4
FATAL_STEP = 4


def sleep_for_ever() -> None:
    time.sleep(600)


def sleep_with_the_interpreters_lock() -> None:
    ctypes.PyDLL(None).sleep(600)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def divide_by_zero() -> None:
    raise ZeroDivisionError("one cannot")


def complain() -> None:
    raise UserError("The disk of this rank is full.")


@dataclass
class Case:
    victim: int
    what_happens: Callable[[], None]
    message: str  # a part of it
    survivor_exit_code: int = EXIT_CODE
    stack: str = ""


CASES = {
    "hangs": Case(1, sleep_for_ever, "Rank 1 is stuck in step 4 (training)", stack="sleep_for_ever"),
    "first-hangs": Case(0, sleep_for_ever, "Rank 0 is stuck in step 4 (training)", stack="sleep_for_ever"),
    "hangs-hard": Case(1, sleep_with_the_interpreters_lock, "Rank 1 was killed, or hangs in a call that holds"),
    "killed": Case(1, be_killed, "Rank 1 was killed, or hangs"),
    "first-killed": Case(0, be_killed, "Rank 1 lost the first node's store"),
    "raises": Case(1, divide_by_zero, "Rank 1 raised ZeroDivisionError in step 4 (training): one cannot"),
    "user-error": Case(1, complain, "The disk of this rank is full.", survivor_exit_code=2),
}


def rank_main(rank: int, port: int, recipe: Recipe, case: Case, log: Path) -> None:
    set_rank(rank, recipe.parallelism.world_size, port)
    from nanotron_ext.train.run import run
    from nanotron_ext.train.step import TrainState

    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    train_step = TrainState.train_step

    def fatal_step(state, batch, *arguments):  # type: ignore[no-untyped-def]
        if rank == case.victim and batch.step == FATAL_STEP:
            case.what_happens()
        return train_step(state, batch, *arguments)

    TrainState.train_step = fatal_step  # type: ignore[method-assign]
    try:
        run(recipe)
    except UserError:
        sys.exit(2)


@dataclass
class Job:
    recipe: Recipe
    processes: list[BaseProcess]
    logs: list[Path]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """All cases at once, since they mostly wait."""
    root = tmp_path_factory.mktemp("heartbeat")
    prepare(root)
    started = {}
    for name, case in CASES.items():
        recipe = tiny_recipe(root, general__run=name, parallelism=f"{{dp: 2, hang_timeout_seconds: {TIMEOUT_SECONDS}}}")
        port = free_port()
        logs = [root / f"{name}-{rank}.log" for rank in range(2)]
        processes = [
            CONTEXT.Process(target=rank_main, args=(rank, port, recipe, case, log)) for rank, log in enumerate(logs)
        ]
        for process in processes:
            process.start()
        started[name] = Job(recipe, list(processes), logs)
    return started


@pytest.mark.parametrize("name", CASES)
def test_the_whole_job_ends_and_names_the_rank(jobs: dict[str, Job], name: str) -> None:
    case, job = CASES[name], jobs[name]
    survivor = job.processes[1 - case.victim]
    survivor.join(60)
    assert survivor.exitcode == case.survivor_exit_code, job.logs[1 - case.victim].read_text()
    victim = job.processes[case.victim]
    victim.join(30)
    assert victim.exitcode is not None
    outcome = json.loads((job.recipe.run_folder / "outcome.json").read_text())
    assert outcome["outcome"] == ("failed" if case.survivor_exit_code == 2 else "crashed")
    assert outcome["step"] == FATAL_STEP - 1
    assert case.message in outcome["message"] and case.stack in outcome["message"]
    printed = "".join(log.read_text() for log in job.logs)
    assert printed.count("error: ") == 1 and case.message in printed
    if case.stack:
        assert "The others (1) wait for it in collective operations." in outcome["message"]
        stacks = [(job.recipe.run_folder / "logs" / f"stacks-rank{rank}.txt").read_text() for rank in range(2)]
        assert case.stack in stacks[case.victim] and "all_reduce" in stacks[1 - case.victim]
    if case.what_happens is sleep_with_the_interpreters_lock:
        assert "sleep_with_the_interpreters_lock" in job.logs[1].read_text()
