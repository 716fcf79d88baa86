"""A command with secrets in its environment, looked at while it runs: who is told them, and what listens where."""

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.listening import environments, is_loopback, listening, process_tree

CANARY = "canary-5d41402abc4b2a76"
KEYS = {"CANARY_TOKEN": CANARY, "GITHUB_TOKEN": CANARY, "BANK_PASSWORD": CANARY, "OTHER_API_KEY": CANARY}


class Watched:
    """Runs until the command ends. `programs` are the command lines of what it started, `told` those that were given a
    secret, `addresses` where anything listened. A copy of the command, on its way to becoming a program, is none."""

    def __init__(self, command: Sequence[str], **environment: str) -> None:
        self.addresses: set[tuple[str, int]] = set()
        self.programs: set[str] = set()
        self.told: set[str] = set()
        process = subprocess.Popen(
            command, env={**os.environ, **KEYS, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        own = ""
        while process.poll() is None:
            own = own or _command_of(process.pid)
            self._look(process.pid, own)
            time.sleep(0.02)
        self.output = process.communicate()[0]
        self.returncode = process.returncode

    def _look(self, pid: int, own: str) -> None:
        pids = process_tree(pid)
        try:
            self.addresses |= listening(pids)
        except OSError:  # it has ended
            return
        for child, environment in environments(pids[1:]).items():
            name = _command_of(child)
            if name and name != own:
                self.programs.add(name)
                if CANARY.encode() in environment:
                    self.told.add(name)

    def check(self, folder: Path) -> None:
        """Nothing was told, or stands in any file of `folder`, and nothing listened beyond this machine."""
        assert self.returncode == 0, self.output
        assert self.programs and self.told == set()
        assert all(is_loopback(address) for address, _ in self.addresses), self.addresses
        assert CANARY not in self.output
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files and [path for path in files if CANARY.encode() in path.read_bytes()] == []


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""
