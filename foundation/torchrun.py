"""torchrun for one machine, reachable from this machine only: `python -m foundation.torchrun --nproc-per-node N ...`.

torchrun's own rendezvous, --standalone or none, opens a store on all network interfaces without authentication, and
unpickles its state from it: whoever reaches the port runs code as the user. Here the store listens on 127.0.0.1, holds
addresses and JSON, and the ranks' connections stay on the loopback interface.

A Ctrl-C, a closed terminal and SIGUSR1 do what SIGTERM does, unless they are ignored, as nohup and slurm/lib.sh have
it: the processes are sent SIGTERM, by which trainers save, and exit code 75 says so. torchrun alone would pass the
first two on as they are, which end a trainer without a checkpoint, and die of SIGUSR1 with its processes left running.
Everything else is torchrun's: its options, restarts, logs, summary of failures and exit codes.
"""

import os
import signal
import sys
from types import FrameType

import torch.distributed.run
from torch.distributed import Store
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from foundation.loopback import ADDRESS, host_store, stay_on_loopback
from foundation.outcome import EXIT_CODES

BACKEND = "loopback"


class LoopbackRendezvous(RendezvousHandler):
    """This machine is the only node; each attempt of its workers gets a store of its own."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._store: Store | None = None

    def get_backend(self) -> str:
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        return True  # the workers connect to the same store

    def next_rendezvous(self) -> RendezvousInfo:
        self._store = store = host_store()
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(ADDRESS, store.port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing to do: nobody else could join."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._store = None
        return True


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return LoopbackRendezvous(parameters.run_id)


def _stop(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """Runs torchrun; returns 75 when a signal asked it to stop and its processes have ended, and 2 when it is asked for
    more than one machine or for another rendezvous.
    """
    arguments = ["--signals-to-handle=SIGTERM", *arguments]
    arguments = [f"--rdzv-backend={BACKEND}", f"--rdzv-endpoint={ADDRESS}:0", *arguments]
    options = torch.distributed.run.parse_args(arguments)
    if options.standalone or options.rdzv_backend != BACKEND or options.nnodes not in ("1", "1:1"):
        print(
            "error: foundation.torchrun starts processes on this machine only and has a rendezvous of its own. Leave "
            "out --standalone, --nnodes and --rdzv-backend; for several machines use slurm/submit, or torchrun itself.",
            file=sys.stderr,
        )
        return 2
    stay_on_loopback()
    rendezvous_handler_registry.register(BACKEND, _create)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        torch.distributed.run.main(arguments)
    except SignalException:
        return EXIT_CODES["stopped"]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
