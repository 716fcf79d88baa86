"""Context parallelism in numbers: `python bench/context_parallel.py [balance|memory]` (make bench-context).

balance: how evenly attention is shared at 65,536 tokens, for several kinds of documents and ways to deal out tokens.
The first figure of a cell is the busiest rank's attention over the mean; the second the same for a whole layer of
SmolLM3-3B, whose other parts cost every rank alike.

memory: peak memory per rank of one training step over a window of 65,536 tokens, for a fixed small model, by context
parallelism, chunk of the loss and recomputation, beside the planner's prediction. Measured twice: as the tensors that
live at the peak of a step, and as the process's largest resident size during one, less what it held before, which has
the message library's copies and the allocator's leftovers too. CPU, float32.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from foundation.launch import torchrun_command

WINDOW = 65536
HIDDEN_3B, LAYER_PARAMETERS_3B = 2048, 78_123_008
SCHEMES = {"contiguous": 1, "zigzag": 2, "2 blocks": 2, "4 blocks": 4, "8 blocks": 8}
DRAWS = 40

SMALL_MODEL = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "rope_theta": 5.0e6,
    "eos_token_id": 1,
}
DOCUMENT_TOKENS = 1000
MEMORY_RUNS: list[dict[str, Any]] = [
    {"loss_chunk_tokens": 65536},
    {"loss_chunk_tokens": 8192},
    {},
    {"recompute_mlp": True},
    {"recompute_layer": True},
    {"context_parallel_size": 2},
    {"context_parallel_size": 4},
    {"context_parallel_size": 4, "recompute_mlp": True},
    {"context_parallel_size": 4, "recompute_layer": True},
]


def documents(kind: str, rng: np.random.Generator) -> list[int]:
    """Document lengths that fill a window; log-normal but for `one`, medians in tokens as named."""
    if kind == "one":
        return [WINDOW]
    lengths: list[int] = []
    while sum(lengths) < WINDOW:
        is_long = kind == "long (13,000)" or (kind == "mixed" and rng.random() < 0.1)
        drawn = rng.lognormal(9.5, 1.0) if is_long else rng.lognormal(6.5, 1.2)
        lengths.append(max(1, min(int(drawn), WINDOW - sum(lengths))))
    rng.shuffle(lengths)
    return lengths


def loads(positions: Any, cp: int, scheme: str) -> list[int]:
    """Attention per rank, in query-key pairs."""
    from nanotron_ext.model.sharding import deal_blocks

    blocks = (positions + 1).reshape(cp * SCHEMES[scheme], -1).sum(1).tolist()
    if scheme == "contiguous":
        return list(blocks)
    if scheme == "zigzag":
        return [blocks[rank] + blocks[-1 - rank] for rank in range(cp)]
    return [sum(blocks[block] for block in dealt) for dealt in deal_blocks(blocks, cp)]


def balance() -> None:
    print(f"| documents (median tokens) | cp | {' | '.join(SCHEMES)} |")
    print("| --- " * (2 + len(SCHEMES)) + "|")
    for kind in ("one", "short (670)", "mixed", "long (13,000)"):
        for cp in (2, 4, 8):
            cells = []
            for scheme in SCHEMES:
                rng = np.random.default_rng(0)
                ratios = [_imbalance(documents(kind, rng), cp, scheme) for _ in range(1 if kind == "one" else DRAWS)]
                attention, layer = np.mean(ratios, axis=0)
                cells.append(f"{attention:.2f} / {layer:.3f}")
            print(f"| {kind} | {cp} | {' | '.join(cells)} |")


def _imbalance(lengths: list[int], cp: int, scheme: str) -> tuple[float, float]:
    positions = np.concatenate([np.arange(length) for length in lengths])
    pairs = loads(positions, cp, scheme)
    mean = sum(pairs) / cp
    dense = 2 * LAYER_PARAMETERS_3B * WINDOW / cp
    per_pair = 4 * HIDDEN_3B  # two products, two FLOPs each, over all query heads
    return max(pairs) / mean, (dense + per_pair * max(pairs)) / (dense + per_pair * mean)


def memory() -> None:
    from nanotron_ext.plan.memory import peak_memory

    print("| cp | loss_chunk_tokens | recomputed | weights and optimizer | tensors above that | resident | predicted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for layout in MEMORY_RUNS:
        ranks = layout.get("context_parallel_size", 1)
        # A fixed threshold: otherwise glibc keeps ever larger freed blocks, and the resident size never falls.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": "."}
        command = torchrun_command(ranks, __file__, "worker", json.dumps(layout))
        output = subprocess.run(command, env=environment, check=True, capture_output=True)
        rows = [json.loads(line) for line in output.stdout.splitlines() if line.startswith(b"{")]
        assert len(rows) == ranks
        sizes = [max(row[key] for row in rows) / 2**20 for key in ("held_bytes", "tensor_bytes", "resident_bytes")]
        part = next((name for name in ("mlp", "layer") if layout.get(f"recompute_{name}")), "nothing")
        chunk = layout.get("loss_chunk_tokens", 2048)
        plan = peak_memory(_recipe(layout), 0.0, on_cpu=True)
        predicted = (plan.activations + plan.loss) / 2**20
        row = (f"{ranks}", f"{chunk:,}", part, *(f"{size:,.0f} MiB" for size in (*sizes, predicted)))
        print(f"| {' | '.join(row)} |", flush=True)


def worker(layout: dict[str, Any]) -> None:
    """One rank of a measurement; prints bytes held between steps, and the most held during one beyond that."""
    import torch

    from bench.live_bytes import peak_of_step
    from nanotron_ext.data.loader import MicroBatch, StepBatch
    from nanotron_ext.engine import ParallelContext, initialize_distributed
    from nanotron_ext.train.step import TrainState

    recipe = _recipe(layout)
    device = initialize_distributed().device
    state = TrainState(recipe, ParallelContext(1, 1, 1, recipe.parallelism.context_parallel_size), device)
    ids = torch.randint(0, SMALL_MODEL["vocab_size"], (1, WINDOW + 1), dtype=torch.int32)  # type: ignore[call-overload]
    full, rest = divmod(WINDOW, DOCUMENT_TOKENS)
    lengths = [DOCUMENT_TOKENS] * full + [rest]
    batches = [
        StepBatch(step, 0, [MicroBatch(ids, torch.tensor(lengths).cumsum(0) - 1, lengths)], WINDOW - len(lengths))
        for step in (1, 2, 3)
    ]
    state.train_step(batches[0])
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest resident size so far
    before = dict(_resident_bytes())
    state.train_step(batches[1])
    resident = dict(_resident_bytes())["VmHWM"] - before["VmRSS"]
    held = sum(
        group.params.nbytes + group.grads.nbytes + (2 if group.master is group.params else 3) * group.master.nbytes
        for group in state.optimizer.groups
    )
    tensors = peak_of_step(state, batches[2])
    line = json.dumps({"held_bytes": held, "tensor_bytes": tensors, "resident_bytes": resident})
    sys.stdout.write(f"{line}\n")  # in one piece: the ranks share the pipe
    sys.stdout.flush()
    torch.distributed.destroy_process_group()


def _resident_bytes() -> Iterator[tuple[str, int]]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(("VmHWM", "VmRSS")):
            name, kibibytes, _ = line.split()
            yield name.rstrip(":"), int(kibibytes) * 1024


def _recipe(layout: dict[str, Any]) -> Any:
    from foundation.recipe import Recipe

    schedule = {"learning_rate": 1e-3, "lr_decay_style": "constant"}
    return Recipe.model_validate(
        {
            "general": {"project": "bench", "run": "bench", "runs_path": "unused"},
            "parallelism": layout,
            "model": {"dtype": "float32", "model_config": SMALL_MODEL},
            "tokenizer": {"tokenizer_name_or_path": "unused"},
            "tokens": {"sequence_length": WINDOW, "train_steps": 2, "micro_batch_size": 1},
            "optimizer": {
                "zero_stage": 0, "weight_decay": 0.1, "clip_grad": 1.0, "learning_rate_scheduler": schedule,
            },
            "data": {"path": "unused", "seed": 0},
            "data_stages": [{"name": "only", "start_training_step": 1, "mixture": {"source": 1.0}}],
            "checkpoints": {"checkpoint_interval": 2},
        }
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("balance", "memory", "worker"))
    parser.add_argument("layout", nargs="?", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.what == "worker":
        worker(arguments.layout)
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    for name, measure in (("balance", balance), ("memory", memory)):
        if arguments.what in (None, name):
            print(f"## {name}\n")
            measure()
            print()


if __name__ == "__main__":
    main()
