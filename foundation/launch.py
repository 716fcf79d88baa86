"""How processes are started on this machine. Needs no torch, so that wrong input costs no import of it."""

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from foundation.outcome import STOP_SIGNALS

SHUTDOWN_SECONDS = 600  # for a last checkpoint after SIGTERM; torchrun's 30 are too few for a slow disk


def torchrun_command(processes: int, *arguments: str) -> list[str]:
    """The command that starts `processes` processes on this machine; `arguments` are torchrun's, with the program."""
    return [
        *(sys.executable, "-m", "foundation.torchrun", "--nproc-per-node", str(processes)),
        *("--shutdown-timeout", str(SHUTDOWN_SECONDS), *arguments),
    ]


def run_and_pass_on_signals(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit code; it is sent the stop signals that this process gets."""
    process = subprocess.Popen(command, env=environment)

    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in STOP_SIGNALS}
    try:
        return process.wait()
    except KeyboardInterrupt:  # a terminal sends it to the command as well, which may still save
        process.wait()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
