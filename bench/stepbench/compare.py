"""Variants take their steps, each in processes of its own, and are timed."""

import multiprocessing
import os
import socket
import statistics
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from stepbench.variants import OURS, build, world_size
from stepbench.work import Work

WARM_UP_STEPS = 2  # the first compiles, the second is the first with optimizer state
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}


@dataclass
class Measured:
    """Of one variant: every timed step. Memory is the peak of its largest process, beyond the imports on a CPU."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    peak_megabytes: float = 0.0
    error: str = ""

    def to_dict(self, work: Work, peak_flops_per_second: float) -> dict[str, Any]:
        if self.error:
            return {"error": self.error}
        median = statistics.median(self.seconds)
        steps = range(WARM_UP_STEPS + 1, WARM_UP_STEPS + len(self.seconds) + 1)
        mfu = statistics.median(
            work.flops(step) / seconds / peak_flops_per_second
            for step, seconds in zip(steps, self.seconds, strict=True)
        )
        return {"tokens_per_second": work.tokens / median, "mfu": mfu, **asdict(self)}


def compare(work: Work, variants: list[str], rounds: int, threads: int, device: str) -> dict[str, Measured]:
    """On a CPU the variants take their steps in turns, so that the machine's moods strike all alike; on a GPU one
    after the other, each with the whole of its memory. A variant whose losses are not the first's did other work: it
    gets an error in place of figures."""
    together = [variants] if device == "cpu" else [[variant] for variant in variants]
    measured: dict[str, Measured] = {}
    for turn in together:
        measured |= take_turns(work, turn, rounds, threads, device)
    done = [taken for taken in measured.values() if not taken.error]
    for taken in done[1:]:
        for step, (loss, expected) in enumerate(zip(taken.losses, done[0].losses, strict=True), WARM_UP_STEPS + 1):
            if abs(loss - expected) > LOSS_TOLERANCE[work.dtype] * expected:
                taken.error = f"other work: its loss of step {step} is {loss:.4f}, not {expected:.4f}"
    return measured


def take_turns(work: Work, variants: list[str], rounds: int, threads: int, device: str) -> dict[str, Measured]:
    context = multiprocessing.get_context("spawn")
    ranks: dict[str, list[Connection]] = {variant: [] for variant in variants}
    processes = []
    beside_peers = any(not variant.startswith(OURS) for variant in variants)
    for variant in variants:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(world_size(variant)):
            mine, theirs = context.Pipe()
            ranks[variant].append(mine)
            per_rank = max(threads // world_size(variant), 1)
            arguments = (theirs, variant, work, device, per_rank, rank, port, threads == 1, beside_peers)
            processes.append(context.Process(target=serve, args=arguments, daemon=True))
            processes[-1].start()
            theirs.close()
    measured = {variant: Measured() for variant in variants}
    for step in range(1, WARM_UP_STEPS + rounds + 1):
        for variant, connections in ranks.items():
            if not measured[variant].error:
                _one_step(step, connections, measured[variant])
    for connections in ranks.values():
        for connection in connections:
            connection.close()
    for process in processes:
        process.join()
    return measured


def _one_step(step: int, connections: list[Connection], measured: Measured) -> None:
    try:
        for connection in connections:
            connection.send(step)
        taken = [connection.recv() for connection in connections]
    except (EOFError, BrokenPipeError):
        taken = ["its process died"]
    if errors := [answer for answer in taken if isinstance(answer, str)]:
        measured.error = errors[0]
        return
    measured.peak_megabytes = max(megabytes for _, _, megabytes in taken)
    if step > WARM_UP_STEPS:
        measured.seconds.append(max(seconds for seconds, _, _ in taken))
        measured.losses.append(taken[0][1])


def serve(
    connection: Connection,
    variant: str,
    work: Work,
    device: str,
    threads: int,
    rank: int,
    port: int,
    cpu_time: bool,
    beside_peers: bool,
) -> None:
    """A rank of a variant: takes the steps that it is told to, until the other side hangs up."""
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the trainer takes a GPU where it sees one
    import torch

    import nanotron_ext.train.run  # noqa: F401
    from foundation.loopback import become_rank

    become_rank(rank, world_size(variant), port)
    if beside_peers:  # every variant then has the same imports behind it
        import transformers  # noqa: F401
        from transformers.models.smollm3 import modeling_smollm3  # noqa: F401

    torch.set_num_threads(threads)
    on_gpu = device == "cuda"
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    imports = resident_megabytes("VmRSS")
    clock = process_time if cpu_time and not on_gpu else perf_counter
    take_step = None
    while (step := _next_step(connection)) is not None:
        try:
            take_step = take_step or build(variant, work, device)
            started = clock()
            loss = take_step(step)
            if on_gpu:
                torch.cuda.synchronize()
            seconds = clock() - started
        except Exception as error:  # out of memory, above all
            connection.send(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            return
        peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident_megabytes("VmHWM") - imports
        connection.send((seconds, loss, peak))


def _next_step(connection: Connection) -> int | None:
    try:
        step: int = connection.recv()
    except EOFError:
        return None
    return step


def resident_megabytes(field_name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field_name)) / 1024


def peak_flops(device: str, dtype: str, threads: int) -> float:
    """The GPU's data sheet, or what matrix products reach on the threads that the variants have, measured now."""
    import torch

    from nanotron_ext.engine import initialize_distributed
    from nanotron_ext.model.build import DTYPES
    from nanotron_ext.train.throughput import peak_flops_per_second

    torch.set_num_threads(threads)
    initialize_distributed()
    return peak_flops_per_second(torch.device(device), DTYPES[dtype])


def report(work: Work, measured: dict[str, Measured], peak_flops_per_second: float) -> None:
    parameters, samples = work.recipe().architecture.num_parameters(), work.micro_batches * work.micro_batch_size
    print(
        f"\n{work.size}: {parameters / 1e6:.1f} M parameters, {work.dtype}, {samples} x {work.sequence_length} tokens, "
        f"micro-batches: {work.micro_batches}, peak {peak_flops_per_second / 1e12:.3g} TFLOP/s"
    )
    ours = measured[OURS]
    for variant, taken in measured.items():
        if taken.error:
            print(f"  {variant:30} {taken.error}")
            continue
        figures = taken.to_dict(work, peak_flops_per_second)
        line = (
            f"  {variant:30} {figures['tokens_per_second']:7.0f} tokens/s ({work.tokens / max(taken.seconds):.0f} to "
        )
        line += f"{work.tokens / min(taken.seconds):.0f})  MFU {figures['mfu']:.1%}  {taken.peak_megabytes:6.0f} MB"
        if variant != OURS and not ours.error:
            ratios = [other / own for other, own in zip(taken.seconds, ours.seconds, strict=True)]
            line += f"  ours: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
            line += f", {ours.peak_megabytes / taken.peak_megabytes:.2f} of the memory"
        print(line, flush=True)
