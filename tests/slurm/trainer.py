"""The trainer with a handicap, for tests: `python -m tests.slurm.trainer RECIPE`, under torchrun.

STEP_SECONDS makes every step last so long. CRASHES kills rank 1: `ATTEMPT:STEP ...`, attempts counted from 0 or `*` for
all of them, step 0 before the first. Every rank leaves its node's name in <attempt's logs>/ranks/<rank>.
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


def crash_if_due(step: int) -> None:
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    is_due = {f"*:{step}", f"{attempt}:{step}"} & set(os.environ.get("CRASHES", "").split())
    if is_due and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)


def train_step(self: TrainState, batch: Any, *arguments: Any) -> StepResult:
    time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
    crash_if_due(batch.step)
    return _train_step(self, batch, *arguments)


ranks = Path(os.environ["JOB_LOGS"], "ranks")
ranks.mkdir(exist_ok=True)
with (ranks / os.environ["RANK"]).open("x") as file:  # two processes of one rank: an error
    file.write(os.environ["SLURMD_NODENAME"])
crash_if_due(0)
TrainState.train_step = train_step  # type: ignore[method-assign]
sys.exit(command.main())
