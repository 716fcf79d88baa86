"""How processes are started on this machine. Needs no torch, so that wrong input costs no import of it."""

import sys

SHUTDOWN_SECONDS = 600  # for a last checkpoint after SIGTERM; torchrun's 30 are too few for a slow disk


def torchrun_command(processes: int, *arguments: str) -> list[str]:
    """The command that starts `processes` processes on this machine; `arguments` are torchrun's, with the program."""
    return [
        *(sys.executable, "-m", "foundation.torchrun", "--nproc-per-node", str(processes)),
        *("--shutdown-timeout", str(SHUTDOWN_SECONDS), *arguments),
    ]
