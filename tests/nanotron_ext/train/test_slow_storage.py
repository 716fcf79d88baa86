"""Disks and storage may keep a job waiting for longer than its time-out; only when they hang it is ended."""

import functools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from foundation.journal import StepLog
from foundation.outcome import Outcome
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import list_checkpoints
from nanotron_ext.data.loader import MixtureLoader
from nanotron_ext.model.smollm3 import SmolLM3ForTraining
from nanotron_ext.storage import RemoteCheckpoints
from nanotron_ext.train import heartbeat
from nanotron_ext.train.run import Journal, run
from nanotron_ext.train.step import StepResult, TrainState
from tests.nanotron_ext.ranks import CONTEXT, free_port, run_ranks, set_rank
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

TIMEOUT_SECONDS = 4
DELAY_SECONDS = 10
SHORT_STORAGE_FACTOR = 2

# What waits, and which of its calls on the first rank takes DELAY_SECONDS longer.
SLOW: dict[str, tuple[Any, str, int]] = {
    "reading": (MixtureLoader, "batch", 5),
    "recording": (StepLog, "write", 3),
    "clearing": (shutil, "rmtree", 1),  # what an attempt left, before a save
    "pruning": (shutil, "rmtree", 4),  # the first checkpoint, behind the second
    "uploading": (RemoteCheckpoints, "_put", 1),
    "closing": (Journal, "close", 1),
    "validating": (SmolLM3ForTraining, "forward", 5),  # the first time, which on a GPU compiles anew
}


def delay(case: str) -> None:
    owner, name, number = SLOW[case]
    function, calls = getattr(owner, name), iter(range(1, 10**6))

    @functools.wraps(function)
    def delayed(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == number:
            time.sleep(DELAY_SECONDS)
            print("The delay is over.", file=sys.stderr)
        return function(*arguments, **keywords)

    setattr(owner, name, delayed)


def rank_main(
    rank: int, port: int, recipe: Recipe, victim: int, spoil: Callable[[], None], factor: int, log: Path
) -> None:
    set_rank(rank, recipe.parallelism.world_size, port)
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
    heartbeat.STORAGE_FACTOR = factor
    if rank == victim:
        spoil()
    run(recipe)


@dataclass
class Job:
    recipe: Recipe
    processes: list[BaseProcess]
    logs: list[Path]

    def end(self) -> tuple[list[int | None], str]:
        """Exit codes, and all that was printed."""
        for process in self.processes:
            process.join(120)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes, "".join(log.read_text() for log in self.logs)


def start(root: Path, name: str, victim: int, spoil: Callable[[], None], factor: int, checkpoints: str) -> Job:
    """Two ranks, on one of which something does not work as it should."""
    recipe = tiny_recipe(
        root,
        general__run=name,
        parallelism=f"{{dp: 2, hang_timeout_seconds: {TIMEOUT_SECONDS}}}",
        checkpoints=checkpoints,
    )
    port, job = free_port(), Job(recipe, [], [root / f"{name}-{rank}.log" for rank in range(2)])
    for rank, log in enumerate(job.logs):
        process = CONTEXT.Process(target=rank_main, args=(rank, port, recipe, victim, spoil, factor, log))
        process.start()
        job.processes.append(process)
    return job


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def slow_jobs(root: Path) -> dict[str, Job]:
    """All cases at once, since they mostly wait."""
    jobs = {}
    for name in SLOW:
        remote = f", remote_path: file://{root}/bucket" if name == "uploading" else ""
        checkpoints = f"{{checkpoint_interval: 4, keep_last: 1{remote}}}"
        jobs[name] = start(root, name, 0, functools.partial(delay, name), heartbeat.STORAGE_FACTOR, checkpoints)
    return jobs


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_longer_than_the_time_out_is_waited_for(slow_jobs: dict[str, Job], name: str) -> None:
    codes, printed = slow_jobs[name].end()
    assert codes == [0, 0], printed
    assert "The delay is over." in printed


def train_slowly(recipe: Recipe) -> Outcome:
    train_step = TrainState.train_step

    def late_step(state: TrainState, *arguments: Any) -> StepResult:
        time.sleep(3)
        return train_step(state, *arguments)

    TrainState.train_step = late_step  # type: ignore[method-assign]
    return run(recipe)


def test_steps_that_all_take_longer_than_the_time_out_are_no_hang(root: Path) -> None:
    recipe = tiny_recipe(
        root,
        general__run="every-step",
        parallelism="{dp: 1, hang_timeout_seconds: 2}",
        tokens="{sequence_length: 16, train_steps: 3, micro_batch_size: 4}",
        data_stages='[{"name": "one", "start_training_step": 1, "mixture": {"a": 1.0}}]',
    )
    assert run_ranks(train_slowly, 1, recipe) == [Outcome("finished", 3)]


def hang_in_fsync(path_part: str, wholly: bool) -> None:
    """fsync never returns for files with `path_part` in their path, or from the first of them on for any."""
    fsync, hangs = os.fsync, False

    def fsync_or_hang(descriptor: int) -> None:
        nonlocal hangs
        if hangs or path_part in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            hangs = wholly
            time.sleep(600)
        fsync(descriptor)

    os.fsync = fsync_or_hang


def hang_in_upload() -> None:
    RemoteCheckpoints._put = lambda *_: time.sleep(600)  # type: ignore[method-assign]


def flush_slowly() -> None:
    """Six flushes, each within the limit, together longer than it."""
    fsync = os.fsync

    def fsync_late(descriptor: int) -> None:
        if "/checkpoints" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            time.sleep(SHORT_STORAGE_FACTOR * TIMEOUT_SECONDS / 4)
        fsync(descriptor)

    os.fsync = fsync_late


HANGING: dict[str, tuple[int, Callable[[], None]]] = {
    "shard": (1, functools.partial(hang_in_fsync, "exp_avg-", False)),
    "manifest": (0, functools.partial(hang_in_fsync, "checkpoint.json", False)),
    "whole disk": (0, functools.partial(hang_in_fsync, "exp_avg-", True)),
    "upload": (0, hang_in_upload),
    "steady": (0, flush_slowly),
}


@pytest.fixture(scope="module")
def hanging_jobs(root: Path) -> dict[str, Job]:
    jobs = {}
    for name, (victim, spoil) in HANGING.items():
        remote = f", remote_path: file://{root}/bucket" if name == "upload" else ""
        checkpoints = f"{{checkpoint_interval: {8 if name == 'steady' else 4}{remote}}}"
        jobs[name] = start(root, name, victim, spoil, SHORT_STORAGE_FACTOR, checkpoints)
    return jobs


@pytest.mark.parametrize("name", ["shard", "manifest", "whole disk"])
def test_a_save_that_hangs_ends_the_job_and_names_the_rank(hanging_jobs: dict[str, Job], name: str) -> None:
    """Also when the outcome cannot be written, because it would go to the same disk."""
    codes, printed = hanging_jobs[name].end()
    assert all(codes), printed
    assert printed.count("error: ") == 1
    stuck = re.search(
        r"Rank (\d) is stuck in step \d \(writing checkpoint 4: 0.00 of 0.00 GB\).* no progress for (\d+) s", printed
    )
    assert stuck, printed
    assert int(stuck[1]) == HANGING[name][0] and int(stuck[2]) >= SHORT_STORAGE_FACTOR * TIMEOUT_SECONDS
    assert "The others (1) wait for it in collective operations." in printed
    run_folder = hanging_jobs[name].recipe.run_folder
    assert [path.name for path in (run_folder / "checkpoints").iterdir()] == ["4.tmp"]
    if name != "whole disk":
        assert json.loads((run_folder / "outcome.json").read_text())["outcome"] == "crashed"


def test_an_upload_that_hangs_is_ended_behind_whole_checkpoints(hanging_jobs: dict[str, Job]) -> None:
    codes, printed = hanging_jobs["upload"].end()
    assert codes == [heartbeat.EXIT_CODE] * 2, printed
    assert "Rank 0 is stuck in step 8 (uploading)" in printed
    assert [path.name for path in list_checkpoints(hanging_jobs["upload"].recipe.run_folder)] == ["4", "8"]


def test_a_save_that_goes_on_may_take_longer_than_the_limit(hanging_jobs: dict[str, Job]) -> None:
    codes, printed = hanging_jobs["steady"].end()
    assert codes == [0, 0], printed
