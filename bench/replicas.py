"""What it costs to compare replicas: hashing beside a whole step, in CPU time of one thread.

    python bench/replicas.py --json results/replica_check.json

Weights are hashed at every step, masters and Adam state when replicas are compared; the message itself is a few numbers
per rank. float32, ZeRO 0 (so that everything is hashed), one packed sample of 512 tokens a step: a short step, beside
which the hashes weigh more than they would in training.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.stepbench.work import Work
from foundation.files import write_atomically
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.train.replicas import COLUMNS, hash_of_bits
from nanotron_ext.train.step import TrainState

SIZES = {"30m": "29.3 M", "135m": "133.3 M"}  # parameters
TOKENS, ROUNDS = 512, 5


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Median over ROUNDS, after one that does not count."""
    seconds = []
    for _ in range(ROUNDS + 1):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[1:])


def row(size: str, interval: int) -> list[str]:
    work = Work(size, "float32", TOKENS, 1, 1, TOKENS)
    recipe = work.recipe(overrides=("optimizer.zero_stage=0",))
    state = TrainState(recipe, ParallelContext(1, 1, 1), initialize_distributed().device)
    odd, batch, groups = torch.arange(1, 2 * COLUMNS, 2), work.batch(1), state.optimizer.groups
    step = cpu_seconds(lambda: state.train_step(batch))
    weights = cpu_seconds(lambda: [hash_of_bits(group.params, odd) for group in groups])
    rest = cpu_seconds(
        lambda: [hash_of_bits(flat, odd) for group in groups for flat in state.optimizer.flat_state(group)]
    )
    share = (weights + rest / interval) / step
    return [f"{SIZES[size]} parameters", f"{step * 1e3:,.0f} ms", f"{weights * 1e3:.1f} ms", f"{rest * 1e3:.1f} ms",
            f"{100 * share:.2f} %"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--machine", default="one core, CPU time", help="what the figures are said to come from")
    options = parser.parse_args()
    torch.set_num_threads(1)
    initialize_distributed()
    interval = 100
    rows = [row(size, interval) for size in SIZES]
    columns = ["model", "a step", "weights, every step", "masters and Adam state, when compared", "of a step's time"]
    content = {
        "measured": time.strftime("%Y-%m"),
        "machine": options.machine,
        "command": "python bench/replicas.py",
        "columns": columns,
        "align": ["left", "right", "right", "right", "right"],
        "rows": rows,
    }
    print(json.dumps(content, indent=1))
    if options.json is not None:
        write_atomically(options.json, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
