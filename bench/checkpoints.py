"""What saving costs: `make bench-checkpoints`.

The tiny recipe's model trains on two data-parallel ranks with ZeRO-1. Blocks of 20 steps with one save and without
take turns in one run (with, without, without, with, ...), so that a machine that drifts favours neither. Reports the
ratio of their times, the steps' stall while the state is copied, and each rank's extra peak memory.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from foundation.launch import torchrun_command
from foundation.recipe import Recipe, load_recipe
from nanotron_ext.data.loader import MicroBatch, StepBatch
from nanotron_ext.engine import ParallelContext, initialize_distributed
from nanotron_ext.train.persistence import CheckpointWriter
from nanotron_ext.train.step import TrainState

RECIPE = "recipes/tiny/pretrain.yaml"
LAYOUT = ["parallelism={dp: 2}"]
INTERVAL_STEPS = 20
WARM_UP_STEPS = 10


def random_batch(recipe: Recipe, step: int) -> StepBatch:
    generator = torch.Generator().manual_seed(step)
    tokens, vocabulary = recipe.tokens, recipe.architecture.vocab_size
    shape = tokens.micro_batch_size, tokens.sequence_length + 1
    nothing, lengths = torch.zeros(0, dtype=torch.int64), [tokens.sequence_length] * tokens.micro_batch_size
    micro_batches = [
        MicroBatch(torch.randint(vocabulary, shape, generator=generator, dtype=torch.int32), nothing, lengths)
        for _ in range(tokens.batch_accumulation_per_replica)
    ]
    return StepBatch(step, 0, micro_batches, sum(lengths) * len(micro_batches))


def peak_bytes() -> int:
    """Of this process since the last `reset_peak`."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(recipe: Recipe, pairs: int) -> dict[str, float]:
    """One run of `pairs` blocks with and without a save."""
    launch, p = initialize_distributed(), recipe.parallelism
    state = TrainState(recipe, ParallelContext(p.tp, p.pp, p.dp), launch.device)
    writer, step = CheckpointWriter(state, [], lambda activity, work: None), 0
    seconds: dict[bool, list[float]] = {True: [], False: []}
    cpu_seconds: dict[bool, float] = {True: 0.0, False: 0.0}
    peaks, stalls = [], []

    def train(steps: int) -> None:
        nonlocal step
        for _ in range(steps):
            step += 1
            if not state.train_step(random_batch(recipe, step), False, writer.is_busy).is_saving:
                writer.commit()

    train(WARM_UP_STEPS)
    reset_peak()
    train(WARM_UP_STEPS)
    usual_peak = peak_bytes()  # before the first save, whose memory the allocator may keep
    for pair in range(pairs):
        for saves in (True, False) if pair % 2 == 0 else (False, True):
            torch.distributed.barrier()
            started, cpu_started = time.perf_counter(), time.process_time()
            if saves:
                writer.start(step, {})
                stalls.append(time.perf_counter() - started)
            train(INTERVAL_STEPS)
            writer.commit()  # in the block that began it
            torch.distributed.barrier()
            seconds[saves].append(time.perf_counter() - started)
            cpu_seconds[saves] += time.process_time() - cpu_started
            peaks.append(peak_bytes())
    extra = torch.tensor(float(max(peaks) - usual_peak))
    torch.distributed.all_reduce(extra)
    ratios = [saving / without for saving, without in zip(seconds[True], seconds[False], strict=True)]
    parameters = recipe.architecture.num_parameters()
    return {
        "parameters": parameters,
        "state_bytes_per_rank": 12 * parameters / p.dp,
        "step_seconds_without": statistics.mean(seconds[False]) / INTERVAL_STEPS,
        "step_seconds_saving": statistics.mean(seconds[True]) / INTERVAL_STEPS,
        "ratio": sum(seconds[True]) / sum(seconds[False]),
        "cpu_ratio": cpu_seconds[True] / cpu_seconds[False],
        "ratio_lowest_pair": min(ratios),
        "ratio_highest_pair": max(ratios),
        "stall_seconds": statistics.mean(stalls),
        "extra_peak_bytes_per_rank": float(extra) / p.dp,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6, help="blocks with a save, and as many without")
    arguments = parser.parse_args()
    if "RANK" not in os.environ:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RUN": tempfile.mkdtemp(prefix="bench-checkpoints-")}
        try:
            return subprocess.run(torchrun_command(2, *sys.argv), env=environment, check=False).returncode
        finally:
            shutil.rmtree(environment["RUN"])
    torch.set_num_threads(1)
    result = measure(load_recipe(RECIPE, LAYOUT), arguments.pairs)
    if os.environ["RANK"] == "0":
        print(json.dumps(result, indent=1))
        memory = result["extra_peak_bytes_per_rank"] / result["state_bytes_per_rank"]
        print(
            f"Saving every {INTERVAL_STEPS} steps takes {result['ratio']:.3f} times as long as never saving "
            f"({result['ratio_lowest_pair']:.3f} to {result['ratio_highest_pair']:.3f} over {arguments.pairs} pairs of "
            f"blocks), {result['cpu_ratio']:.3f} times its CPU time, and at its peak {memory:.2f} times the state's "
            f"size of host memory."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
