"""Runs code that a model wrote: in its own namespaces, without network, with limits, seeing only a read-only system.

Needs Linux with unprivileged user namespaces. `check_sandbox` tries the walls themselves and says which one is missing;
the code benchmarks refuse to run without it.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy

from eval.sandbox_inside import COMPLETED, ENDED_EARLY

_INSIDE = Path(__file__).with_name("sandbox_inside.py")


class SandboxError(RuntimeError):
    """The sandbox is not available on this machine; the message says why."""


@dataclass(frozen=True)
class Limits:
    wall_seconds: float = 15.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20


@dataclass(frozen=True)
class Outcome:
    """`completed`: the program ran to its end without an error. `output`: its standard output, cut to 1 MB."""

    completed: bool
    output: str
    reason: str


def run_python(program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Run `program` with this interpreter's standard library and numpy in the sandbox.

    Leaving early, also with exit code 0, does not count as completed.

    Raises:
        SandboxError: if the namespaces cannot be created.
    """
    limits = limits or Limits()
    unshare = shutil.which("unshare")
    if unshare is None or not sys.platform.startswith("linux"):
        raise SandboxError("The sandbox needs Linux with the command unshare (util-linux).")
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        work = Path(folder)
        (work / "program.py").write_text(program, encoding="utf-8")
        (work / "stdin").write_text(stdin, encoding="utf-8")
        (work / "root").mkdir()
        # Root needs no user namespace; it becomes another user once the walls stand (limits on processes spare root).
        user_namespace = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        command = [unshare, *user_namespace, "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        user_id = 1 << 30 | secrets.randbits(28) if os.geteuid() == 0 else 0
        site_packages = str(Path(numpy.__file__).parents[1])
        command += [sys.executable, "-I", "-S", str(_INSIDE), folder, site_packages, str(user_id)]
        command += [str(limits.cpu_seconds), str(limits.memory_bytes), str(limits.processes), str(limits.file_bytes)]
        with (work / "output").open("wb") as output, (work / "errors").open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
            try:
                code = process.wait(limits.wall_seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return Outcome(False, "", f"stopped after {limits.wall_seconds:g} s")
        text = (work / "output").read_bytes()[: 1 << 20].decode("utf-8", "replace")
        message = (work / "errors").read_bytes()[-2000:].decode("utf-8", "replace").strip()
    if code == COMPLETED:
        return Outcome(True, text, "")
    if code == ENDED_EARLY:
        return Outcome(False, text, message.splitlines()[-1] if message else "left before its end")
    raise SandboxError(f"The sandbox could not be set up (exit code {code}): {message}")


@cache
def check_sandbox() -> None:
    """Try each wall once.

    Raises:
        SandboxError: naming the wall that does not hold.
    """
    simple = run_python("import numpy\nassert numpy.arange(3).sum() == 3")
    if not simple.completed:
        raise SandboxError(f"The sandbox does not run a simple program: {simple.reason}")
    attacks = {
        "network": "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "memory": "x = bytearray(4 << 30)",
        "files": "open('/usr/sandbox-test', 'w')",
    }
    quick = Limits(wall_seconds=5, cpu_seconds=2)
    for name, program in attacks.items():
        if run_python(program, limits=quick).completed:
            raise SandboxError(f"The sandbox does not limit {name} on this machine.")
