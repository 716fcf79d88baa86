"""How a run ends: the request to stop, and the file that tells whoever started the run what became of it.

torchrun's exit code does not carry its workers', so a launcher reads `<run>/outcome.json`; without that file the run
was killed.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from foundation.files import write_atomically
from foundation.journal import METRICS_FILE, last_row

OUTCOME_FILE = "outcome.json"
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)

# 75 is EX_TEMPFAIL of sysexits.h: try again later. 2 is for errors that a user has to mend.
EXIT_CODES = {"finished": 0, "stopped": 75}


class Run(Protocol):
    """A recipe, of pretraining or of post-training."""

    @property
    def run_folder(self) -> Path: ...


@dataclass(frozen=True)
class Outcome:
    """finished: the last step is done; stopped: on request, with a checkpoint; failed: an error that a user mends;
    crashed: a rank died or hung, which another attempt may not.
    """

    outcome: Literal["finished", "stopped", "failed", "crashed"]
    step: int  # the last one done
    message: str = ""


class StopSignal:
    """Remembers SIGUSR1 (Slurm's warning before the time limit) and SIGTERM (preemption), from a program's first line
    on.

    With `ends_at_once` either ends the process there and then, with the exit code of a stopped run: while it imports,
    checks and connects there is nothing to save, and it may wait in C++, where no handler of Python's runs, for a rank
    that is gone. So a thread is told of the signal.
    """

    def __init__(self, ends_at_once: bool = False) -> None:
        self.requested = False
        self.ends_at_once = ends_at_once
        self.run: Run | None = None  # whose outcome this process writes when it ends at once
        if ends_at_once:
            reading, writing = os.pipe()
            os.set_blocking(writing, False)
            signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reading,), name="stop signal", daemon=True).start()
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self.requested = True

    def _watch(self, reading: int) -> None:
        while number := os.read(reading, 1):
            if number[0] in STOP_SIGNALS and self.ends_at_once:
                self._end(signal.Signals(number[0]).name)

    def _end(self, name: str) -> None:
        if os.environ.get("RANK", "0") == "0":
            print(f"Stopped by {name} before training began: there is nothing to save.", file=sys.stderr, flush=True)
        if self.run is not None:
            write(self.run, Outcome("stopped", last_recorded_step(self.run)))
        os._exit(EXIT_CODES["stopped"])


def clear(recipe: Run) -> None:
    """Forget how an earlier attempt ended."""
    (recipe.run_folder / OUTCOME_FILE).unlink(missing_ok=True)


def write(recipe: Run, outcome: Outcome) -> None:
    """Leave the outcome in the run folder, if there is one."""
    if recipe.run_folder.is_dir():
        write_atomically(recipe.run_folder / OUTCOME_FILE, json.dumps(dataclasses.asdict(outcome)) + "\n")


def last_recorded_step(recipe: Run) -> int:
    """The last step of metrics.jsonl, 0 before the first."""
    row = last_row(recipe.run_folder / METRICS_FILE)
    return row["step"] if row else 0
