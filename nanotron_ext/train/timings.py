"""`<run>/timings.jsonl`: how long each start and each save of a run took, by part, also those of attempts that failed.

{"step": 9, "event": "start", "seconds": {"imports": 5.1, ..., "first step": 1.2}, "seconds_since_last_step": 61.3}
{"step": 8, "event": "save", "seconds": {"copy": 0.4, "write": 21.0, "commit": 1.3}}

A start's step is its first one, and its parts go from the start of the process to that step's end. Between attempts a
run stands still: `seconds_since_last_step` is that time, null at its first start. Of a save, training stands still
during copy and commit, and during the write only at the end of a run or when the next save has to wait for it. Parts
are those of the first rank, a save's write is the slowest rank's. metrics.jsonl, from which a new attempt removes the
rows behind its checkpoint, would forget what that attempt cost.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from foundation.journal import METRICS_FILE, TIMINGS_FILE, StepLog
from foundation.recipe import Recipe


class Stopwatch:
    """Seconds of one part after the other, from the start of this process on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.clock_gettime(time.CLOCK_BOOTTIME) - _process_seconds()

    def lap(self, part: str) -> None:
        """`part` ends here, and the next one begins."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.seconds[part] = round(now - self._mark, 3)
        self._mark = now


class Timings:
    """The first rank's account of starts and saves."""

    def __init__(self, recipe: Recipe, last_step_time: float | None) -> None:
        """`last_step_time`: see `time_of_last_step`."""
        self._log = StepLog(recipe.run_folder / TIMINGS_FILE, sys.maxsize)  # cuts off only what a kill left torn
        self._last_step_time = last_step_time

    def start(self, step: int, seconds: dict[str, float]) -> dict[str, Any]:
        """To be called when the first step is done; the row."""
        since = None if self._last_step_time is None else round(time.time() - self._last_step_time, 3)
        row = {"step": step, "event": "start", "seconds": seconds, "seconds_since_last_step": since}
        self._log.write(row)
        return row

    def save(self, step: int, seconds: dict[str, float]) -> dict[str, Any]:
        """To be called when the checkpoint is visible; the row."""
        row = {"step": step, "event": "save", "seconds": seconds}
        self._log.write(row)
        return row

    def close(self) -> None:
        self._log.close()


def time_of_last_step(run_folder: Path) -> float | None:
    """When an earlier attempt recorded its last step (seconds since the epoch); to be asked before this one begins."""
    file = run_folder / METRICS_FILE
    return file.stat().st_mtime if file.is_file() and file.stat().st_size else None


def _process_seconds() -> float:
    """How long this process has been there."""
    started_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")
