"""On which addresses do processes listen? Read from /proc, so independent of what the programs say of themselves."""

import contextlib
import socket
import struct
from ipaddress import ip_address
from pathlib import Path

_LISTEN, _UNCONNECTED = "0A", "07"  # TCP_LISTEN, and TCP_CLOSE, which UDP sockets without a peer are in


def process_tree(pid: int) -> list[int]:
    """The process and all its descendants that are alive now."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                found += map(int, task.read_text().split())
    return found


def environments(pids: list[int]) -> dict[int, bytes]:
    """What each process was given as its environment when its program started."""
    found = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = Path(f"/proc/{pid}/environ").read_bytes()
    return found


def listening(pids: list[int]) -> set[tuple[str, int]]:
    """Address and port of every socket on which one of the processes takes connections (TCP) or datagrams (UDP)."""
    inodes = {inode for pid in pids for inode in _sockets(pid)}
    found = set()
    for table, waiting in {"tcp": _LISTEN, "tcp6": _LISTEN, "udp": _UNCONNECTED, "udp6": _UNCONNECTED}.items():
        for line in Path(f"/proc/{pids[0]}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == waiting and rest[5] in inodes:
                address, port = local.split(":")
                found.add((_readable(address), int(port, 16)))
    return found


def is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return bool((mapped or parsed).is_loopback)


def _sockets(pid: int) -> list[str]:
    targets = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                targets.append(str(file.readlink()))
    return [target[len("socket:[") : -1] for target in targets if target.startswith("socket:[")]


def _readable(address: str) -> str:
    """The kernel writes addresses as 32-bit words in the machine's byte order."""
    words = [int(address[start : start + 8], 16) for start in range(0, len(address), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, packed)
