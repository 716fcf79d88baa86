"""How a run ends: the request to stop, and the file that tells whoever started the run what became of it.

torchrun's exit code does not carry its workers', so a launcher reads `<run>/outcome.json`; without that file the run
was killed.
"""

import dataclasses
import json
import signal
from dataclasses import dataclass
from typing import Any, Literal

from nanotron_ext.checkpoint import write_atomically
from nanotron_ext.recipe import Recipe
from nanotron_ext.train.tracking import read_metrics

OUTCOME_FILE = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """finished: the last step is done; stopped: on request, with a checkpoint; failed: an error that a user mends;
    crashed: a rank died or hung, which another attempt may not.
    """

    outcome: Literal["finished", "stopped", "failed", "crashed"]
    step: int  # the last one done
    message: str = ""


class StopSignal:
    """Remembers SIGUSR1 (Slurm's warning before the time limit) and SIGTERM (preemption)."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: Any) -> None:
        self.requested = True


def clear(recipe: Recipe) -> None:
    """Forget how an earlier attempt ended."""
    (recipe.run_folder / OUTCOME_FILE).unlink(missing_ok=True)


def write(recipe: Recipe, outcome: Outcome) -> None:
    """Leave the outcome in the run folder, if there is one."""
    if recipe.run_folder.is_dir():
        write_atomically(recipe.run_folder / OUTCOME_FILE, json.dumps(dataclasses.asdict(outcome)) + "\n")


def last_recorded_step(recipe: Recipe) -> int:
    """The last step of metrics.jsonl, 0 before the first."""
    rows = read_metrics(recipe.run_folder)
    return rows[-1]["step"] if rows else 0
