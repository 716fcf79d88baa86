"""Run a function on several ranks, as torchrun would, and get every rank's result."""

import multiprocessing
import pickle  # by value: torch's own pickler would share memory with a process that is gone
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# The server imports torch, nanotron and what it imports late; each rank is a fork of it, ready in milliseconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["nanotron_ext.train.run", "accelerate", "torch._dynamo"])


def run_ranks(
    function: Callable[..., Any], world_size: int, *arguments: Any, timeout_seconds: float = 120
) -> list[Any]:
    """`function(*arguments)` on `world_size` ranks with torchrun's environment; results in the order of ranks.

    An exception on any rank is raised here with that rank's traceback.
    """
    port = free_port()
    workers = []
    for rank in range(world_size):
        mine, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_rank_main, args=(rank, world_size, port, theirs, function, arguments))
        process.start()
        theirs.close()
        workers.append((process, mine))
    patience_seconds = 0.0  # for the others, when a rank has failed
    try:
        results = [_result(rank, connection, timeout_seconds) for rank, (_, connection) in enumerate(workers)]
        patience_seconds = 5.0
        return results
    finally:
        for process, _ in workers:
            process.join(patience_seconds)
            if process.is_alive():
                process.kill()
                process.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def set_rank(rank: int, world_size: int, port: int) -> None:
    """Make this process a rank, as torchrun does."""
    import torch

    from foundation.loopback import become_rank

    torch.set_num_threads(1)
    become_rank(rank, world_size, port)


def _result(rank: int, connection: Connection, timeout_seconds: float) -> Any:
    if not connection.poll(timeout_seconds):
        raise TimeoutError(f"rank {rank} gave no result within {timeout_seconds} s")
    try:
        ok, value = pickle.loads(connection.recv_bytes())
    except EOFError:
        raise RuntimeError(f"rank {rank} died without a word") from None
    if not ok:
        raise RuntimeError(f"rank {rank} failed:\n{value}")
    return value


def _rank_main(
    rank: int, world_size: int, port: int, connection: Connection, function: Callable[..., Any], arguments: Any
) -> None:
    import torch

    set_rank(rank, world_size, port)
    try:
        connection.send_bytes(pickle.dumps((True, function(*arguments))))
    except BaseException:
        connection.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
