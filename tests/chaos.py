"""Kill training runs at random moments, and show that they end as if nothing had happened: `make chaos`.

Each run is the tiny recipe in one of several layouts. It is killed with SIGKILL, one rank or all of them, once or
several times: every second run inside a save, at a random one of the writes, renames and deletions that make a
checkpoint; the others at a random moment, some of these under torchrun. After each kill all ranks must be gone within a
minute by themselves, and the next attempt must continue the newest complete checkpoint. At the end the run's weights,
Adam state, losses and the log of sample ids must equal those of the uninterrupted run bit for bit. Then others are
stopped by signals: chaos_stops.py.
"""

import argparse
import contextlib
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from foundation.journal import read_metrics, read_samples
from foundation.launch import torchrun_command
from foundation.recipe import Recipe
from nanotron_ext import checkpoint
from nanotron_ext.checkpoint import CheckpointReader, list_checkpoints, resolve_checkpoint
from tests.chaos_stops import stop_runs
from tests.nanotron_ext.ranks import CONTEXT, free_port, set_rank
from tests.nanotron_ext.tiny_run import RECIPE_PATH, overrides, prepare, tiny_recipe

STEPS, INTERVAL = 18, 3
SHUTDOWN_SECONDS = 60
TRAINING_LINE = re.compile(r"steps \d+ to \d+, ")  # once all ranks are connected and have loaded
LAYOUTS = [  # the largest one every other time
    {"dp": 2, "pp": 2, "tp": 2, "zero": 1},
    {"dp": 2, "pp": 1, "tp": 1, "zero": 1},
    {"dp": 2, "pp": 2, "tp": 2, "zero": 0},
    {"dp": 1, "pp": 2, "tp": 2, "zero": 0},
    {"dp": 2, "pp": 2, "tp": 2, "zero": 1},
    {"dp": 2, "pp": 1, "tp": 2, "zero": 1},
    {"dp": 2, "pp": 2, "tp": 2, "zero": 1},
    {"dp": 1, "pp": 1, "tp": 1, "zero": 0},
]


@dataclass
class Attempt:
    """Processes of one start of a run. `paused` becomes readable when the victim has come to its point in a save."""

    pids: list[int]
    log: Path
    is_running: Callable[[], bool]
    paused: Connection | None = None
    victim_end: Connection | None = None  # kept open, so that silence is not taken for the end of the pipe
    started: float = field(default_factory=time.monotonic)

    def kill(self, victims: list[int]) -> None:
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, limit_seconds: float) -> float:
        """Seconds until all processes were gone by themselves."""
        started = time.monotonic()
        while self.is_running():
            if time.monotonic() - started > limit_seconds:
                self.kill(self.pids)
                end = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
                raise AssertionError(f"still running {limit_seconds:.0f} s later; {self.log} ends with:\n{end}")
            time.sleep(0.02)
        return time.monotonic() - started


class SaveEvents:
    """Counts what this process does to checkpoints on disk; at the `stop_at`-th such event it waits to be killed."""

    def __init__(self, stop_at: int | None, paused: Connection) -> None:
        self.count, self._stop_at, self._paused = 0, stop_at, paused
        self._save_tensors = checkpoint.save_tensors
        checkpoint.save_tensors = self._save_or_tear  # of a file, the hook sees only that it is opened
        sys.addaudithook(self._on_audit_event)

    def _on_audit_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wa"
        if writes or event in ("os.mkdir", "os.rename", "os.remove", "shutil.rmtree"):
            path = str(arguments[0])
            if "/checkpoints/" in path or path.endswith("/latest.tmp"):
                self._happened(f"{event} {path}")

    def _save_or_tear(self, path: Path, *arguments: Any) -> dict[str, Any]:
        files = self._save_tensors(path, *arguments)
        if self.count + 1 == self._stop_at:
            os.truncate(path, path.stat().st_size * 2 // 3)
        self._happened(f"write {path}")
        return files

    def _happened(self, what: str) -> None:
        self.count += 1
        if self.count == self._stop_at:
            self._paused.send(what)
            time.sleep(600)


def _rank_main(
    rank: int, port: int, recipe: Recipe, log: Path, stop_at: int | None, paused: Connection, counts: Connection
) -> None:
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    events = SaveEvents(stop_at, paused)
    set_rank(rank, recipe.parallelism.world_size, port)
    logging.basicConfig(level="INFO" if rank == 0 else "ERROR", format="%(message)s")
    from nanotron_ext.train.run import run

    run(recipe)
    counts.send((rank, events.count))


def start(recipe: Recipe, log: Path, stop: tuple[int, int] | None = None) -> tuple[Attempt, Connection]:
    """Start all ranks, forked from one process that has done the imports. `stop`: a rank, and where in a save."""
    port = free_port()
    paused, victim_end = CONTEXT.Pipe()
    counts, rank_end = CONTEXT.Pipe()
    processes = []
    for rank in range(recipe.parallelism.world_size):
        stop_at = stop[1] if stop and stop[0] == rank else None
        process = CONTEXT.Process(target=_rank_main, args=(rank, port, recipe, log, stop_at, victim_end, rank_end))
        process.start()
        processes.append(process)

    def is_running() -> bool:
        return any(process.is_alive() for process in processes)

    return Attempt([process.pid or 0 for process in processes], log, is_running, paused, victim_end), counts


def start_torchrun(root: Path, recipe: Recipe, changes: dict[str, object], log: Path) -> Attempt:
    """Start the run as a user would; its ranks are the children of the returned first process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    with log.open("a") as output:
        process = subprocess.Popen(
            torchrun_command(
                recipe.parallelism.world_size, "-m", "nanotron_ext.train", RECIPE_PATH, *overrides(root, **changes)
            ),
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    # Ranks that it leaves behind when it is killed itself still hold files while the kernel clears them away.
    attempt = Attempt([process.pid], log, lambda: process.poll() is None or any(map(is_alive, attempt.pids[1:])))
    return attempt


def is_alive(pid: int) -> bool:
    """Whether the process exists and is more than an entry in the process table."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    result = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True, check=False)
    return [int(word) for word in result.stdout.split()]


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run of a layout."""

    seconds: float
    save_events: dict[int, int]  # of each rank
    outcome: Any


class Chaos:
    """Runs under kills, compared with the uninterrupted run of the same layout."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.references: dict[str, Reference] = {}
        self.kills = self.kills_in_save = self.repeated_steps = 0
        self.slowest_shutdown = 0.0

    def reference(self, layout: dict[str, int]) -> Reference:
        name = "reference-" + "-".join(map(str, layout.values()))
        if name not in self.references:
            recipe = tiny_recipe(self.root, **changes(layout, name))
            attempt, counts = start(recipe, self.root / f"{name}.log")
            attempt.wait(300)
            seconds = time.monotonic() - attempt.started
            events = dict(counts.recv() for _ in attempt.pids)
            self.references[name] = Reference(seconds, events, final_state(recipe))
        return self.references[name]

    def run(self, number: int) -> str:
        """One run: killed, resumed until done, compared. Returns what was done to it; AssertionError if it differs."""
        layout, in_save = LAYOUTS[number % len(LAYOUTS)], number % 2 == 1
        reference = self.reference(layout)
        run_changes = changes(layout, f"run{number}")
        recipe = tiny_recipe(self.root, **run_changes)
        log = self.root / f"run{number}.log"
        report: list[str] = []
        wanted = self.random.choice([1, 1, 2, 3])
        under_torchrun = not in_save and number % 5 == 0
        for _ in range(50):
            if len(report) == wanted:
                break
            resumes_at = newest_step(recipe)
            log.unlink(missing_ok=True)
            if in_save:
                done = self._kill_in_save(recipe, log, reference)
            elif under_torchrun:
                done = self._kill_torchrun(recipe, run_changes, log)
            else:
                done = self._kill_at_random_moment(recipe, log, reference)
            self._check_resumed(log, resumes_at)
            if done:
                report.append(done)
                self.repeated_steps += len(read_metrics(recipe.run_folder)) - newest_step(recipe)
            elif newest_step(recipe) == STEPS:
                if report:
                    break
                shutil.rmtree(recipe.run_folder)  # finished before its kill: once more
        assert report, "no kill in fifty attempts"
        resumes_at = newest_step(recipe)
        log.unlink(missing_ok=True)
        attempt, _ = start(recipe, log)
        attempt.wait(300)
        self._check_resumed(log, resumes_at)
        assert final_state(recipe) == reference.outcome, f"the end differs from the uninterrupted run, see {log}"
        shutil.rmtree(recipe.run_folder)
        name = " x ".join(f"{key} {value}" for key, value in layout.items())
        return f"{name}{', torchrun' if under_torchrun else ''}: {'; '.join(report)}"

    def _kill_in_save(self, recipe: Recipe, log: Path, reference: Reference) -> str | None:
        rank = self.random.choice([rank for rank, count in reference.save_events.items() if count])
        if self.random.random() < 0.5:
            rank = 0  # it also makes folders, commits and prunes
        left = 1 - newest_step(recipe) / STEPS
        event = self.random.randint(1, max(1, int(reference.save_events[rank] * left)))
        attempt, _ = start(recipe, log, (rank, event))
        assert attempt.paused is not None
        while attempt.is_running() and not attempt.paused.poll(0.02):
            pass
        if not attempt.paused.poll():
            return None
        what = attempt.paused.recv().replace(f"{recipe.run_folder}/", "")
        time.sleep(self.random.choice([0, 0, 0.2]))  # the others train on, or wait
        self.kills_in_save += 1
        return f"{self._kill(attempt, attempt.pids, rank)} in {what}"

    def _kill_at_random_moment(self, recipe: Recipe, log: Path, reference: Reference) -> str | None:
        delay = self.random.uniform(0.02, 1) * reference.seconds * (1 - newest_step(recipe) / STEPS)
        attempt, _ = start(recipe, log)
        time.sleep(delay)
        if not attempt.is_running():
            return None
        rank = self.random.randrange(len(attempt.pids))
        return f"{self._kill(attempt, attempt.pids, rank)} after {delay:.1f} s"

    def _kill_torchrun(self, recipe: Recipe, run_changes: dict[str, object], log: Path) -> str | None:
        """At a random step, since the imports take most of the time."""
        attempt = start_torchrun(self.root, recipe, run_changes, log)
        step = self.random.randint(newest_step(recipe), STEPS - 1)
        while attempt.is_running() and not (
            TRAINING_LINE.search(log.read_text()) and len(read_metrics(recipe.run_folder)) > step
        ):
            time.sleep(0.02)
        ranks = children(attempt.pids[0])
        if not ranks:
            attempt.wait(SHUTDOWN_SECONDS)  # finished before its kill
            return None
        attempt.pids += ranks
        return f"{self._kill(attempt, ranks, self.random.randrange(len(ranks)))} after step {step + 1}"

    def _kill(self, attempt: Attempt, ranks: list[int], rank: int) -> str:
        """The victim alone, or everything."""
        everything = self.random.random() < 0.4
        is_connected = TRAINING_LINE.search(attempt.log.read_text()) is not None
        attempt.kill(attempt.pids if everything else [ranks[rank]])
        if not is_connected and len(attempt.pids) == len(ranks):
            attempt.kill(ranks)  # ranks that are still connecting are ended by torchrun, which is not here
        self.slowest_shutdown = max(self.slowest_shutdown, attempt.wait(SHUTDOWN_SECONDS))
        self.kills += 1
        return "all ranks" if everything else f"rank {rank}"

    @staticmethod
    def _check_resumed(log: Path, step: int) -> None:
        """Had the attempt come so far, it has continued the newest checkpoint there was, or none if there was none."""
        text = log.read_text()
        continued = re.search(r"Continuing \S+ after step (\d+)", text)
        if TRAINING_LINE.search(text) or continued:
            assert int(continued[1] if continued else 0) == step, f"it did not continue step {step}, see {log}"


def changes(layout: dict[str, int], name: str) -> dict[str, object]:
    accumulation = 4 // layout["dp"]
    return {
        "general__run": name,
        "parallelism": f"{{dp: {layout['dp']}, pp: {layout['pp']}, tp: {layout['tp']}, hang_timeout_seconds: 10}}",
        "optimizer__zero_stage": layout["zero"],
        "tokens": f"{{sequence_length: 16, train_steps: {STEPS}, micro_batch_size: 2, "
        f"batch_accumulation_per_replica: {accumulation}, val_check_interval: 6}}",
        "checkpoints": f"{{checkpoint_interval: {INTERVAL}, keep_last: 2, keep_every_steps: 6}}",
        "logging__log_samples": "true",
    }


def newest_step(recipe: Recipe) -> int:
    found = list_checkpoints(recipe.run_folder)
    return int(found[-1].name) if found else 0


def final_state(recipe: Recipe) -> Any:
    """Everything that must be equal: state as bytes, metrics (but timings), samples, checkpoints kept."""
    reader = CheckpointReader(resolve_checkpoint(recipe.run_folder))
    assert reader.step == STEPS and reader.damaged_files() == []
    kinds = recipe.optimizer.state_kinds
    state = {(kind, name): reader.read(kind, name).numpy().tobytes() for kind in kinds for name in reader.names()}
    exact = ("step", "loss", "lr", "grad_norm", "tokens", "data", "validation_bits_per_byte")
    metrics = [{key: row.get(key) for key in exact} for row in read_metrics(recipe.run_folder)]
    samples = read_samples(recipe.run_folder)
    assert list(samples) == list(range(1, STEPS + 1)) and all(len(of_step) == 8 for of_step in samples.values())
    kept = [path.name for path in list_checkpoints(recipe.run_folder)]
    return state, metrics, samples, kept


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--count", type=int, default=30, help="number of runs")
    parser.add_argument("--stops", type=int, default=20, help="number of runs that are stopped by two signals each")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random here")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    prepare(root)
    chaos = Chaos(root, arguments.seed)
    started, failures = time.monotonic(), []
    for number in range(arguments.count):
        try:
            print(f"run {number + 1}/{arguments.count}: {chaos.run(number)}: equal", flush=True)
        except AssertionError as error:
            failures.append(number)
            print(f"run {number + 1}/{arguments.count}: FAILED: {error}", flush=True)
    signals, failed_stops = stop_runs(chaos, arguments.stops)
    equal = arguments.count - len(failures)
    print(
        f"{equal} of {arguments.count} runs equal the uninterrupted one bit for bit: {chaos.kills} kills, "
        f"{chaos.kills_in_save} of them inside a save; {chaos.repeated_steps} steps done again; the last rank was gone "
        f"{chaos.slowest_shutdown:.1f} s after a kill at the latest; {arguments.stops - len(failed_stops)} of "
        f"{arguments.stops} runs end so after {signals} stop signals; {(time.monotonic() - started) / 60:.1f} minutes, "
        f"seed {arguments.seed}."
    )
    if failures or failed_stops:
        print(f"Logs and folders of the failed runs are in {root}.")
        return 1
    shutil.rmtree(root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
