"""Our training step beside transformers' SmolLM3ForCausalLM, on the same batches, weights and threads, in one run.

A step is forward, backward, clipping and AdamW in float32, on samples packed with documents of realistic lengths and
attention within documents. Every variant is a process of its own (its peak memory is counted beyond the imports); they
take their steps in turns, so that the machine's moods strike all alike. Losses must agree, or the benchmark fails. The
time is CPU time, which other programs hardly disturb, if --threads is 1, else wall-clock time.

    python bench/step.py [--sizes 30m 135m] [--rounds 5] [--json FILE]
"""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

OURS = "this trainer"
VARIANTS = (OURS, "transformers eager", "transformers sdpa", "transformers sdpa, compiled")
SEQUENCE_LENGTH, VOCABULARY = 2048, 128_256
MICRO_BATCH_SIZE, MICRO_BATCHES = 1, 1
LEARNING_RATE = 1e-3
WARM_UP_STEPS = 1
SIZES = {  # with the vocabulary of SmolLM3, most of a small model is its embedding
    "30m": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 12, "heads": (3, 1)},
    "135m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 24, "heads": (8, 2)},
}


class StepTime(NamedTuple):
    seconds: float  # CPU time with one thread, else wall-clock time
    loss: float
    megabytes: float  # peak so far, beyond the imports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write all times here")
    parser.add_argument("--profile", action="store_true", help="print where our step's time goes, and nothing else")
    arguments = parser.parse_args()
    results = {}
    for size in arguments.sizes:
        if arguments.profile:
            profile(size, arguments.threads)
            continue
        results[size] = compare(size, arguments.variants, arguments.rounds, arguments.threads)
        report(size, results[size])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


# ---- the comparison


def compare(size: str, variants: list[str], rounds: int, threads: int) -> dict[str, list[StepTime]]:
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    processes = []
    for variant in variants:
        connections[variant], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, variant, size, threads), daemon=True))
        processes[-1].start()
    steps: dict[str, list[StepTime]] = {variant: [] for variant in variants}
    for step in range(1, WARM_UP_STEPS + rounds + 1):
        for variant, connection in connections.items():
            connection.send(step)
            steps[variant].append(StepTime(*connection.recv()))
        losses = [taken[-1].loss for taken in steps.values()]
        if max(losses) - min(losses) > 1e-3 * max(losses):
            raise SystemExit(f"error: the losses of step {step} differ: {dict(zip(variants, losses, strict=True))}")
    for connection, process in zip(connections.values(), processes, strict=True):
        connection.send(None)
        process.join()
    return steps


def serve(connection: Connection, variant: str, size: str, threads: int) -> None:
    """A variant's process: takes the steps that it is told to."""
    import torch
    import transformers  # noqa: F401  so that every variant has the same imports behind it
    from transformers.models.smollm3 import modeling_smollm3  # noqa: F401

    import nanotron_ext.train.run  # noqa: F401

    torch.set_num_threads(threads)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    imports = resident_megabytes("VmRSS")
    take_step = our_step(size) if variant == OURS else transformers_step(size, variant)
    clock = process_time if threads == 1 else perf_counter
    while (step := connection.recv()) is not None:
        started = clock()
        loss = take_step(step)
        connection.send((clock() - started, loss, resident_megabytes("VmHWM") - imports))


def resident_megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def report(size: str, steps: dict[str, list[StepTime]]) -> None:
    tokens = SEQUENCE_LENGTH * MICRO_BATCH_SIZE * MICRO_BATCHES
    parameters = recipe_of(size).architecture.num_parameters()
    print(f"\n{size}: {parameters / 1e6:.1f} M parameters, {tokens} tokens a step, sequence {SEQUENCE_LENGTH}, float32")
    own = [taken.seconds for taken in steps[OURS][WARM_UP_STEPS:]]
    for variant, taken in steps.items():
        seconds = [step.seconds for step in taken[WARM_UP_STEPS:]]
        ratios = [other / mine for other, mine in zip(seconds, own, strict=True)]
        spread = f"{tokens / max(seconds):.0f} to {tokens / min(seconds):.0f}"
        memory = f"{taken[-1].megabytes:6.0f} MB (ours: {steps[OURS][-1].megabytes / taken[-1].megabytes:.2f} of it)"
        faster = f"ours: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {variant:28} {tokens / statistics.median(seconds):6.0f} tokens/s ({spread})  {faster}  {memory}")


# ---- the work


def recipe_of(size: str) -> Any:
    from nanotron_ext.recipe import load_recipe

    shape = dict(SIZES[size])
    heads, kv_heads = shape.pop("heads")
    model = {**shape, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": VOCABULARY}
    model["max_position_embeddings"] = SEQUENCE_LENGTH
    return load_recipe(
        "recipes/tiny/pretrain.yaml",
        [
            *(f"model.model_config.{key}={value}" for key, value in model.items()),
            "parallelism={loss_chunk_tokens: 512}",
            "tokenizer={tokenizer_name_or_path: none}",
            "data={path: none, seed: 1}",
            "data_stages=[{name: all, start_training_step: 1, mixture: {none: 1.0}}]",
            f"tokens={{sequence_length: {SEQUENCE_LENGTH}, train_steps: 1000, micro_batch_size: {MICRO_BATCH_SIZE}, "
            f"batch_accumulation_per_replica: {MICRO_BATCHES}}}",
            f"optimizer.learning_rate_scheduler={{learning_rate: {LEARNING_RATE}, lr_decay_style: constant}}",
        ],
    )


def batch_of(step: int) -> Any:
    """Random tokens in documents of log-normal lengths, 900 tokens on average, as the loader cuts them."""
    import numpy as np
    import torch

    from nanotron_ext.data.loader import MicroBatch, StepBatch

    generator = np.random.default_rng(step)
    micro_batches = []
    for _ in range(MICRO_BATCHES):
        tokens = generator.integers(2, VOCABULARY, (MICRO_BATCH_SIZE, SEQUENCE_LENGTH + 1), dtype=np.int32)
        lengths: list[int] = []
        for _ in range(MICRO_BATCH_SIZE):
            ends = np.cumsum(generator.lognormal(6.3, 1.0, SEQUENCE_LENGTH).astype(np.int64) + 1)
            ends = np.append(ends[ends < SEQUENCE_LENGTH], SEQUENCE_LENGTH)
            lengths += np.diff(ends, prepend=0).tolist()
        untrained = torch.tensor(lengths).cumsum(0) - 1
        micro_batches.append(MicroBatch(torch.from_numpy(tokens), untrained, lengths))
    labels = MICRO_BATCHES * MICRO_BATCH_SIZE * SEQUENCE_LENGTH
    return StepBatch(step, 0, micro_batches, labels - sum(len(batch.untrained) for batch in micro_batches))


def our_step(size: str) -> Callable[[int], float]:
    from nanotron_ext.engine import ParallelContext, initialize_distributed
    from nanotron_ext.train.step import TrainState

    device = initialize_distributed().device
    state = TrainState(recipe_of(size), ParallelContext(1, 1, 1), device)
    return lambda step: state.train_step(batch_of(step)).loss


def transformers_step(size: str, variant: str) -> Callable[[int], float]:
    """What a careful user writes: packed samples by their position ids, gradients accumulated, fused AdamW."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    from nanotron_ext.hf_format import hf_config, parameter_shapes, to_hf
    from nanotron_ext.model.documents import Documents
    from nanotron_ext.model.init import initial_tensor

    recipe = recipe_of(size)
    config = SmolLM3Config(**hf_config(recipe.architecture, "float32"))
    model = SmolLM3ForCausalLM._from_config(config, attn_implementation=variant.split()[1].strip(","))
    model.train()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, shape in parameter_shapes(recipe.architecture).items():
            std = recipe.model.init_method.std
            whole = torch.ones(shape) if "layernorm" in name else initial_tensor(name, shape, recipe.general.seed, std)
            for hf_name, part in to_hf(name, whole, recipe.architecture):
                parameters[hf_name].copy_(part)
    embedding = parameters.pop("model.embed_tokens.weight")
    decay, settings = recipe.optimizer.weight_decay, recipe.optimizer
    optimizer = torch.optim.AdamW(
        [{"params": list(parameters.values()), "weight_decay": decay}, {"params": [embedding], "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_eps,
        fused=True,
    )
    run = torch.compile(model) if "compiled" in variant else model

    def take_step(step: int) -> float:
        batch = batch_of(step)
        total = 0.0
        for micro_batch in batch.micro_batches:
            shape = (MICRO_BATCH_SIZE, SEQUENCE_LENGTH)
            positions = Documents.from_lengths(micro_batch.lengths).position_ids.view(shape)
            logits = run(input_ids=micro_batch.input_ids.view(shape), position_ids=positions, use_cache=False).logits
            labels = micro_batch.label_ids.masked_fill(~micro_batch.label_mask, -100)
            loss = cross_entropy(logits.view(-1, VOCABULARY), labels, reduction="sum") / batch.trained_tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return take_step


def profile(size: str, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    take_step = our_step(size)
    for step in (1, 2):
        take_step(step)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        take_step(3)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45))


if __name__ == "__main__":
    main()
