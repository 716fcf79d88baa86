"""The planner against this machine: peak memory and step time of recipes, predicted and measured.

    python bench/plan.py recipes/tiny/pretrain_stage1.yaml [RECIPE ...] [section.key=value ...]

Each recipe's layout runs as in training (model, optimizer, micro-batches through the pipeline engine) on random tokens
in documents of a given length. The peak is VmHWM of the largest process, in a pass of its own. The time of a step is
the CPU time of all processes over the cores that they share (of the busiest one, where that is more), in the least
disturbed step: what it takes on a machine that does nothing else. Beside it the median of wall time, which says little
on a busy machine. With --gpu on a machine with GPUs: memory that torch reserves there, and wall time.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from foundation.launch import torchrun_command

WARM_UP_STEPS = 3
LAYOUT = {"dp": "dp", "pp": "pp", "tp": "tp", "cp": "context_parallel_size"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="+", metavar="RECIPE or section.key=value")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measured steps per recipe")
    parser.add_argument("--document-tokens", type=int, default=256)
    parser.add_argument("--gpu", default="cpu", help="plan for this device, on a machine that has it")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    overrides = [argument for argument in options.arguments if "=" in argument]
    recipes = [argument for argument in options.arguments if "=" not in argument]
    if options.worker:
        measure(recipes[0], overrides, options.seconds, options.document_tokens, options.worker)
        return
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {time.strftime('%Y-%m-%d')}")
    print("| recipe | layout | memory predicted | measured | error | step predicted | measured | error | wall |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for recipe in recipes:
        print(row(recipe, overrides, options.seconds, options.document_tokens, options.gpu), flush=True)


def row(recipe: str, overrides: list[str], seconds: float, document_tokens: int, gpu: str) -> str:
    command = [sys.executable, "-m", "smollm3", "plan", recipe, *overrides, "--gpu", gpu, "--json"]
    command += ["--document-tokens", str(document_tokens)]
    plan = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    layout = plan["layout"]
    command = [__file__, recipe, *overrides, "--document-tokens", str(document_tokens)]
    ranks = run_ranks([*command, "--seconds", str(seconds)], plan["devices"])
    for_memory = ranks
    if gpu == "cpu":  # with a fixed threshold: otherwise glibc keeps ever larger freed blocks, in all later steps
        for_memory = run_ranks([*command, "--seconds", "0"], plan["devices"], MALLOC_MMAP_THRESHOLD_="65536")
    cells = [Path(recipe).with_suffix("").as_posix().removeprefix("recipes/")]
    cells.append(" ".join(f"{name} {layout[key]}" for name, key in LAYOUT.items()))
    wall = max(rank["seconds"] for rank in ranks)
    busy = [rank["cpu_seconds"] for rank in ranks]
    step_seconds = max(sum(busy) / len(os.sched_getaffinity(0)), max(busy)) if gpu == "cpu" else wall
    pairs = (
        (plan["memory"]["total"] / 1e6, max(rank["bytes"] for rank in for_memory) / 1e6, "MB"),
        (plan["step"]["total"] * 1e3, step_seconds * 1e3, "ms"),
    )
    for predicted, measured, unit in pairs:
        cells += [f"{predicted:.0f} {unit}", f"{measured:.0f} {unit}", f"{predicted / measured - 1:+.1%}"]
    cells.append(f"{wall * 1e3:.0f} ms")
    return f"| {' | '.join(cells)} |"


def run_ranks(command: list[str], ranks: int, **environment: str) -> list[dict[str, float]]:
    """What each rank of `command` reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(torchrun_command(ranks, *command, "--worker", folder), check=True, env=environment)
        return [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]


def measure(path: str, overrides: list[str], seconds: float, document_tokens: int, folder: Path) -> None:
    """One rank: train steps, then leave the median time and the peak of resident memory."""
    import torch

    import nanotron_ext.train.run  # noqa: F401  all that a training process loads
    from foundation.recipe import load_recipe
    from nanotron_ext.data.loader import MicroBatch, StepBatch
    from nanotron_ext.engine import ParallelContext, initialize_distributed
    from nanotron_ext.train.step import TrainState

    torch.set_num_threads(1)
    recipe = load_recipe(path, overrides)
    launch, parallelism, tokens = initialize_distributed(), recipe.parallelism, recipe.tokens
    cp = parallelism.context_parallel_size
    context = ParallelContext(parallelism.tp, parallelism.pp, parallelism.dp, cp)
    state = TrainState(recipe, context, launch.device)
    length = min(document_tokens, tokens.sequence_length)
    pieces = [length] * (tokens.sequence_length // length)
    pieces += [tokens.sequence_length % length] if tokens.sequence_length % length else []
    trained = tokens.micro_batch_size * tokens.batch_accumulation_per_replica * tokens.sequence_length
    times: list[float] = []
    busy: list[float] = []
    elapsed = 0.0
    while len(times) < WARM_UP_STEPS + 2 or elapsed < seconds:
        shape = (tokens.batch_accumulation_per_replica, tokens.micro_batch_size, tokens.sequence_length + 1)
        ids = torch.randint(0, recipe.architecture.vocab_size, shape, dtype=torch.int32)
        nothing = torch.empty(0, dtype=torch.int64)
        batches = [MicroBatch(samples, nothing, pieces * tokens.micro_batch_size) for samples in ids]
        start, start_busy = time.perf_counter(), time.process_time()
        state.train_step(StepBatch(len(times) + 1, 0, batches, trained))
        times.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
        # All ranks must stop at the same step: the first one's clock decides.
        clock = torch.tensor(sum(times[WARM_UP_STEPS:]))
        torch.distributed.broadcast(clock, 0)
        elapsed = float(clock)
    resident = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    result = {
        "seconds": statistics.median(times[WARM_UP_STEPS:]),
        "cpu_seconds": min(busy[WARM_UP_STEPS:]),
        "bytes": torch.cuda.max_memory_reserved() if launch.device.type == "cuda" else resident,
    }
    (folder / f"{launch.rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
