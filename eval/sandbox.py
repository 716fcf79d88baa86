"""Runs code that a model wrote: in its own namespaces, without network, with limits, seeing only a read-only system.

A program that reads and prints runs by itself, and its output is the caller's to judge. A program whose functions are
tested runs in one sandbox and the tests in another one that calls it (eval/sandbox_calls.py): what the program does in
its own cannot reach the verdict. Needs Linux, and root or unprivileged user namespaces. `check_sandbox` tries each
restriction and says which one is missing; the code benchmarks refuse to run without it.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy

from eval.sandbox_calls import ENDED
from eval.sandbox_inside import COMPLETED, ENDED_EARLY

_START = "import sys; sys.path.insert(0, sys.argv[1]); from eval.sandbox_inside import main; del sys.path[0]"
_ATTEMPTS = 3
_FIRST_USER, _USERS = 1 << 30, 1 << 28  # user ids that no other process has


class SandboxError(RuntimeError):
    """The sandbox is not available on this machine; the message says why."""


@dataclass(frozen=True)
class Limits:
    """Of each sandbox."""

    wall_seconds: float = 15.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20


@dataclass(frozen=True)
class Outcome:
    """`completed`: ended by itself without an error. `output`: what it printed. `reason`: why it did not complete."""

    completed: bool
    output: str
    reason: str


def run_script(program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Run `program` with this interpreter's standard library and numpy.

    Only what it printed says anything about it: a program can end in any way it likes.

    Raises:
        SandboxError: if the namespaces cannot be created.
    """
    limits = limits or Limits()

    def run() -> Outcome:
        with _sandbox("script", program, limits, stdin=stdin) as sandbox:
            return sandbox.outcome(limits.wall_seconds)

    return _repeated(run)


def run_tests(program: str, tests: str, limits: Limits | None = None) -> Outcome:
    """Run `tests`, which reach the functions of `program` as `__answer__("name")`; completed if no test failed.

    Arguments and results cross by value: the tests get copies, in Python's own types and numpy's.

    Raises:
        SandboxError: if the namespaces cannot be created.
    """
    limits = limits or Limits()

    def run() -> Outcome:
        ours, theirs = socket.socketpair()
        with (
            contextlib.closing(ours),
            contextlib.closing(theirs),
            _sandbox("answers", program, limits, channel=theirs) as answers,
            _sandbox("tests", tests, limits, channel=ours) as judged,
        ):
            ours.close()
            theirs.close()
            outcome = judged.outcome(limits.wall_seconds)
            if outcome.reason == ENDED:  # it may have said why
                return Outcome(False, "", answers.outcome(limits.wall_seconds).reason or ENDED)
            return outcome

    return _repeated(run)


def _repeated(run: Callable[[], Outcome]) -> Outcome:
    """Again after a while if the system could not give what a sandbox needs: other programs may have had it."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return run()
        except (OSError, SandboxError) as error:
            if attempt == _ATTEMPTS:
                raise SandboxError(str(error)) from None
            time.sleep(attempt)
    raise AssertionError("the loop returns or raises")


class _Sandbox:
    """A running sandbox, whose output and errors lie in `work`."""

    def __init__(self, process: subprocess.Popen[bytes], work: Path) -> None:
        self.process, self._work = process, work

    def outcome(self, wall_seconds: float) -> Outcome:
        """Wait for its end.

        Raises:
            SandboxError: if it never came to run its program.
        """
        try:
            code = self.process.wait(wall_seconds)
        except subprocess.TimeoutExpired:
            return Outcome(False, "", f"stopped after {wall_seconds:g} s")
        output = (self._work / "output").read_bytes().decode("utf-8", "replace")
        errors = (self._work / "errors").read_bytes()[-2000:].decode("utf-8", "replace").strip()
        if code == COMPLETED:
            return Outcome(True, output, "")
        if code == ENDED_EARLY:
            return Outcome(False, output, errors.splitlines()[-1] if errors else "left with an exit code other than 0")
        raise SandboxError(f"The sandbox could not be set up (exit code {code}): {errors}")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _is_root() -> bool:
    """Whether this is root that can become any user: root of a container may have only a few, or itself."""
    if os.geteuid() != 0:
        return False
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, count = map(int, line.split())
        if first <= _FIRST_USER and first + count >= _FIRST_USER + _USERS:
            return True
    return False


@contextlib.contextmanager
def _sandbox(
    role: str, program: str, limits: Limits, stdin: str = "", channel: socket.socket | None = None
) -> Iterator[_Sandbox]:
    """Start `program` in a sandbox; whatever still runs there in the end is killed."""
    unshare = shutil.which("unshare")
    if unshare is None or not sys.platform.startswith("linux"):
        raise SandboxError("The sandbox needs Linux with the command unshare (util-linux).")
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        work = Path(folder)
        for name, text in (("program.py", program), ("stdin", stdin)):
            (work / name).write_text(text, encoding="utf-8", errors="replace")  # text may hold half a surrogate pair
        (work / "root").mkdir()
        # Root needs no user namespace; it becomes another user in the end (limits on processes spare root).
        is_root = _is_root()
        user_namespace = [] if is_root else ["--user", "--map-root-user"]
        command = [unshare, *user_namespace, "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        command += [sys.executable, "-I", "-S", "-c", f"{_START}; main(sys.argv[2:])", str(Path(__file__).parents[1])]
        user_id = _FIRST_USER + secrets.randbelow(_USERS) if is_root else 0
        descriptor = -1 if channel is None else channel.fileno()
        command += [role, folder, str(Path(numpy.__file__).parents[1]), str(user_id), str(descriptor)]
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
                pass_fds=[] if channel is None else [descriptor],
            )
        sandbox = _Sandbox(process, work)
        try:
            yield sandbox
        finally:
            sandbox.kill()


@cache
def check_sandbox() -> None:
    """Try each restriction once, and that functions can be called.

    Raises:
        SandboxError: naming what does not hold.
    """
    simple = run_tests("import numpy\ndef f(x): return numpy.arange(x).sum()", "assert __answer__('f')(3) == 3")
    if not simple.completed:
        raise SandboxError(f"The sandbox does not run a simple program: {simple.reason}")
    attacks = {
        "network": "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        "memory": "x = bytearray(4 << 30)",
        "files": "open('/usr/sandbox-test', 'w')",
    }
    quick = Limits(wall_seconds=5, cpu_seconds=2)
    for name, program in attacks.items():
        if run_script(program, limits=quick).completed:
            raise SandboxError(f"The sandbox does not limit {name} on this machine.")
