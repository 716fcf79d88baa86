"""The trainer with a handicap, for tests: `python -m tests.slurm.trainer RECIPE`, under torchrun.

STEP_SECONDS makes every step last so long. CRASH_STEP kills a rank in that step, each time it comes there. Every rank
leaves its node's name in <attempt's logs>/ranks/<rank>.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from nanotron_ext.train import __main__ as command
from nanotron_ext.train.step import StepResult, TrainState

_train_step = TrainState.train_step


def train_step(self: TrainState, batch: Any, *arguments: Any) -> StepResult:
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
    if batch.step == int(os.environ.get("CRASH_STEP", "0")) and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return _train_step(self, batch, *arguments)


ranks = Path(os.environ["JOB_LOGS"], "ranks")
ranks.mkdir(exist_ok=True)
with (ranks / os.environ["RANK"]).open("x") as file:  # two processes of one rank: an error
    file.write(os.environ["SLURMD_NODENAME"])
TrainState.train_step = train_step  # type: ignore[method-assign]
sys.exit(command.main())
