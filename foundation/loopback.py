"""What keeps the processes of one machine from being reached from others: a store and connections on 127.0.0.1."""

import os
import socket
from datetime import timedelta

from torch.distributed import TCPStore

ADDRESS = "127.0.0.1"
STORE_TIMEOUT = timedelta(minutes=10)
_hosted: list[TCPStore] = []  # a store serves as long as its object lives


def host_store(port: int = 0) -> TCPStore:
    """A store that listens on 127.0.0.1 only; port 0 means any free one.

    TCPStore itself listens on all interfaces, whatever host it is given, unless it gets a socket that listens already.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((ADDRESS, port))
    listener.listen(socket.SOMAXCONN)
    port = listener.getsockname()[1]
    descriptor = listener.detach()  # the store closes it
    return TCPStore(
        ADDRESS, port, is_master=True, timeout=STORE_TIMEOUT, wait_for_workers=False, master_listen_fd=descriptor
    )


def stay_on_loopback() -> None:
    """Keep gloo and NCCL of this process, and of those that it starts, from listening on other interfaces.

    Overrules what a shell has set for jobs on a cluster.
    """
    os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")


def become_rank(rank: int, world_size: int, port: int = 0) -> None:
    """Make this process one of `world_size` ranks on this machine that something else than torchrun has started.

    Rank 0 hosts the store, on the port that all ranks are given; a rank that is alone may take any.
    """
    stay_on_loopback()
    if rank == 0:
        _hosted[:] = [host_store(port)]
        port = _hosted[0].port
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR=ADDRESS,
        MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",  # connect to that store and start none
    )
