"""A short look at every node before training: `python -m slurm.node_check`, one task per node, from lib.sh.

On each node: are all GPUs there, is their memory free, do they multiply matrices and all-reduce among themselves at the
expected rate? Then nodes all-reduce in pairs, each with its two neighbours on a ring: a node whose network is slow or
dead fails with both, its partners with one. Exit code 0: the node may take part; 1: it should not, the output says why;
124: a check did not finish in time, which a busy machine explains as well as a bad node. NODE_CHECK_FOLDER is where the
nodes meet: shared by them, and new for every check.
"""

import argparse
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from slurm.node_verdict import TIMED_OUT

NODE_SECONDS = 60.0  # for a node's own checks
PAIR_SECONDS = 20.0  # for a pair's; two of them and three times as long a wait for partners fit NODE_CHECK_SECONDS
MATRIX_SIZE = {"cuda": 8192, "cpu": 512}
ALL_REDUCE_BYTES = {"cuda": 256 << 20, "cpu": 1 << 20}
EXPECTED_SHARE_OF_PEAK = 0.5  # large bf16 products reach 60 to 75 % on healthy GPUs


class BadNode(Exception):
    """This node should not take part; the message says why."""


class Unfinished(Exception):
    """A check ran out of time; the message says which."""


def matrix_rate(device: torch.device, seconds: float = 0.3) -> float:
    """TFLOP/s of matrix products, bfloat16 on GPUs and float32 on CPUs, over about `seconds`."""
    size = MATRIX_SIZE[device.type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    matrix = torch.randn(size, size, device=device, dtype=dtype)

    def timed(products: int) -> float:
        return _seconds(device, lambda: [torch.mm(matrix, matrix) for _ in range(products)])

    timed(3)
    products = max(1, int(seconds / timed(3) * 3))
    return products * 2 * size**3 / timed(products) / 1e12


def all_reduce_rate(device: torch.device, repeats: int = 5) -> float:
    """Gigabytes per second that each rank puts on the wire, 2 (n - 1) / n x size / time, comparable for all n."""
    world = torch.distributed.get_world_size()
    data = torch.ones(ALL_REDUCE_BYTES[device.type] // 4, device=device)
    torch.distributed.all_reduce(data)
    seconds = _seconds(device, lambda: [torch.distributed.all_reduce(data) for _ in range(repeats)])
    return repeats * 2 * (world - 1) / world * data.nbytes / seconds / 1e9


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def expected_tflops(device: torch.device) -> float:
    """Half of the data sheet's peak; 0, which any rate passes, for hardware that is not in the list."""
    if device.type == "cpu":
        return 0.0
    from nanotron_ext.train.throughput import PEAK_FLOPS_PER_SECOND  # takes nanotron along, seconds that CPUs can spare

    name = torch.cuda.get_device_name(device)
    peaks = (peak for part, peak in PEAK_FLOPS_PER_SECOND.items() if part in name)
    return next(peaks, 0.0) * EXPECTED_SHARE_OF_PEAK / 1e12


def check_local(rank: int, world: int, store: Path, options: argparse.Namespace) -> None:
    """One process per GPU of this node: memory, matrix product, all-reduce.

    Raises:
        BadNode: naming what is missing or slow.
    """
    device = _device(rank, options)
    name = f"GPU {rank}" if device.type == "cuda" else "the CPU"
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_memory()
    if free < options.min_free_gb * 1e9:
        raise BadNode(f"{name} has {free / 1e9:.1f} GB of free memory, not {options.min_free_gb:g}")
    expected = options.tflops if options.tflops is not None else expected_tflops(device)
    rate = matrix_rate(device) * options.factor
    if rate < expected:
        raise BadNode(f"{name} multiplies matrices at {rate:.3g} TFLOP/s, not {expected:g}")
    _check_all_reduce(device, rank, world, store, options.local_gb_per_second, "between its GPUs", options.factor)


def check_pair(rank: int, world: int, store: Path, options: argparse.Namespace) -> None:
    """The first GPU of two nodes: all-reduce over the network. Raises BadNode when it is slow."""
    device = _device(0, options)
    _check_all_reduce(device, rank, world, store, options.pair_gb_per_second, "between two nodes", options.factor)


def _check_all_reduce(
    device: torch.device, rank: int, world: int, store: Path, expected: float, where: str, factor: float
) -> None:
    if world == 1:
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    # Longer than any limit of `in_processes`, which so decides what is a time-out: NCCL would abort the process.
    timeout = timedelta(seconds=2 * NODE_SECONDS)
    torch.distributed.init_process_group(
        backend, init_method=f"file://{store.absolute()}", rank=rank, world_size=world, timeout=timeout
    )
    rate = all_reduce_rate(device) * factor
    if rate < expected:
        raise BadNode(f"all-reduce {where} runs at {rate:.3g} GB/s, not {expected:g}")


def _device(index: int, options: argparse.Namespace) -> torch.device:
    if options.gpus == 0:
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible < options.gpus:
        raise BadNode(f"{visible} of {options.gpus} GPUs are visible")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _free_memory() -> int:
    """Bytes that Linux can hand out without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


Check = Callable[[int, int, Path, argparse.Namespace], None]
_BROKEN_CONNECTION = re.compile("timed? ?out|(closed|reset) by peer|connection refused|remote process", re.IGNORECASE)


def in_processes(
    check: Check, ranks: list[int], world: int, store: Path, options: argparse.Namespace, seconds: float
) -> None:
    """Run `check` in a process per rank.

    Raises:
        BadNode: a rank does, or dies.
        Unfinished: a rank takes longer than `seconds`, or another node broke the connection, maybe for that reason.
    """
    context = multiprocessing.get_context("fork")  # this process never touches the GPUs, so forks may
    processes = []
    for rank in ranks:
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_report, args=(theirs, check, rank, world, store, options), daemon=True)
        process.start()
        theirs.close()
        processes.append((process, mine))
    deadline = time.monotonic() + seconds
    try:
        for rank, (process, connection) in zip(ranks, processes, strict=True):
            if not connection.poll(max(0.0, deadline - time.monotonic())):
                raise Unfinished(f"rank {rank} of {check.__name__} took longer than {seconds:g} s")
            try:
                problem: Exception | None = connection.recv()
            except EOFError:
                process.join()
                raise BadNode(f"rank {rank} of {check.__name__} died with exit code {process.exitcode}") from None
            if problem is not None:
                raise problem
    finally:
        for process, _ in processes:
            process.kill()
            process.join()


def _report(
    connection: Connection, check: Check, rank: int, world: int, store: Path, options: argparse.Namespace
) -> None:
    try:
        check(rank, world, store, options)
        connection.send(None)
    except BadNode as error:
        connection.send(error)
    except Exception as error:  # a driver that fails is a reason too
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        connection.send(Unfinished(text) if _BROKEN_CONNECTION.search(str(error)) else BadNode(text))


def ring_neighbours(index: int, count: int) -> list[tuple[int, int]]:
    """The pairs that node `index` of `count` forms, in an order in which no two nodes wait for each other in a circle.

    Edges of a ring, in rounds of disjoint ones: even edges, odd edges, and the closing edge of an odd ring.
    """
    edges = [(node, (node + 1) % count) for node in range(count if count > 2 else count - 1)]
    closing = edges[-1:] if count % 2 else []
    ordered = [*edges[0 : len(edges) - len(closing) : 2], *edges[1 : len(edges) - len(closing) : 2], *closing]
    return [edge for edge in ordered if index in edge]


def check_node(folder: Path, index: int, count: int, options: argparse.Namespace) -> None:
    """All checks of the node with this index in the job.

    Raises:
        BadNode: it fails by itself, or with every neighbour that has passed by itself.
        Unfinished: its own checks ran out of time, or those with its neighbours while they reach nobody else either.
    """
    ranks, started = list(range(options.gpus or 1)), time.monotonic()
    try:
        in_processes(check_local, ranks, len(ranks), folder / f"store-{index}", options, NODE_SECONDS)
    except (BadNode, Unfinished):
        (folder / f"bad-{index}").touch()  # nobody need wait for it
        raise
    (folder / f"ready-{index}").touch()
    problems: list[Exception] = []
    partners = []
    for pair in ring_neighbours(index, count):
        partner = pair[1] if index == pair[0] else pair[0]
        name = f"{pair[0]}-{pair[1]}"
        ready, bad = folder / f"ready-{partner}", folder / f"bad-{partner}"
        if _first_of(ready, bad, seconds=NODE_SECONDS - (time.monotonic() - started)) != ready:
            continue  # its own fault
        (folder / f"met-{name}-{index}").touch()
        if _first_of(folder / f"met-{name}-{partner}", seconds=PAIR_SECONDS + 5) is None:
            continue
        partners.append(partner)
        try:
            in_processes(check_pair, [int(index == pair[1])], 2, folder / f"store-{name}", options, PAIR_SECONDS)
            (folder / f"reached-{index}").touch()
        except (BadNode, Unfinished) as error:
            problems.append(error)
    if not problems or len(problems) < len(partners):
        return
    if all(isinstance(error, Unfinished) for error in problems):
        # Partners that reach somebody else have a working network, and this machine is not too busy for it.
        reached = (folder / f"reached-{partner}" for partner in partners)
        if _first_of(*reached, seconds=PAIR_SECONDS + 5) is None:
            raise problems[0]
        raise BadNode(f"no all-reduce with a neighbour that reaches others: {problems[0]}")
    raise next(error for error in problems if isinstance(error, BadNode))


def _first_of(*files: Path, seconds: float) -> Path | None:
    """The first of the files to appear, None when `seconds` have passed without any."""
    deadline = time.monotonic() + seconds
    while True:
        for file in files:
            if file.exists():
                return file
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.1)


def _gpus_of_job() -> int:
    """Those that Slurm gave; a job on CPUs has no use for them, even if its header asks for some."""
    return 0 if os.environ.get("JOB_DEVICE") == "cpu" else int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.node_check", description=__doc__)
    parser.add_argument("--gpus", type=int, default=_gpus_of_job(), help="on each node")
    parser.add_argument(
        "--min-free-gb", type=float, default=1.0, help="memory of each GPU, or of the node without GPUs"
    )
    parser.add_argument(
        "--tflops", type=float, help="matrix product; default: half of the data sheet's dense bf16 peak"
    )
    parser.add_argument("--local-gb-per-second", type=float, default=0.0, help="all-reduce between the GPUs of a node")
    parser.add_argument("--pair-gb-per-second", type=float, default=0.0, help="all-reduce between two nodes")
    parser.add_argument("--pretend-slow", metavar="NODE", help="for drills: this node reaches 1/1000 of its rates")
    options = parser.parse_args()
    options.factor = 1e-3 if options.pretend_slow == os.environ.get("SLURMD_NODENAME") else 1.0
    folder = Path(os.environ["NODE_CHECK_FOLDER"])
    folder.mkdir(parents=True, exist_ok=True)
    index, count = int(os.environ.get("SLURM_NODEID", "0")), int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    try:
        check_node(folder, index, count, options)
    except BadNode as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    except Unfinished as error:
        print(error, file=sys.stderr, flush=True)
        return TIMED_OUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
