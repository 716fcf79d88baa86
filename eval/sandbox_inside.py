"""First process inside a sandbox's namespaces: builds the file system, drops all privileges, runs what it holds.

Runs alone (`python -I -S`), with the standard library only. Its exit code says how it went; see the constants.
"""

import contextlib
import ctypes
import io
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from eval.sandbox_calls import run_program, run_tests, serve

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
# What a user namespace may not take from a mount that it was given, as /proc/self/mountinfo spells it.
_MS_KEPT = {"noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 38, 24
_PACKAGES = "/packages"
_CHANNEL = 3
COMPLETED, ENDED_EARLY, SETUP_FAILED = 0, 96, 97
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}{arguments}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), None if data is None else data.encode())


def _protect(target: Path) -> None:
    """Make read-only what is mounted at `target` and below it: a remount acts on one mount, not on those below.

    Raises:
        OSError: if one of them stays writable.
    """
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, _, _, _, name, options, *_ = line.split(" ")
        place = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), name))
        if not place.is_relative_to(target) or not place.exists():
            continue
        kept = sum(flag for option, flag in _MS_KEPT.items() if option in options.split(","))
        with contextlib.suppress(OSError):  # of a mount that a later one covers
            _mount("none", str(place), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | kept)
        if not os.statvfs(place).f_flag & os.ST_RDONLY:
            raise OSError(f"{place} stays writable")


def build_root(folder: Path, site_packages: Path) -> None:
    """A tmpfs root with the interpreter, numpy and the system libraries read-only, and an empty /work."""
    root = folder / "root"
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", str(root), "tmpfs", _MS_NOSUID | _MS_NODEV, "size=64m,mode=755")
    prefixes = {Path(sys.base_prefix), Path(sys.base_prefix).resolve()}
    shown = {path: root / path.relative_to("/") for path in (*map(Path, ("/usr", "/lib", "/lib64", "/bin")), *prefixes)}
    # The tests of HumanEval+ and MBPP+ import numpy.
    shown |= {site_packages / name: root / _PACKAGES[1:] / name for name in ("numpy", "numpy.libs")}
    for path, target in shown.items():
        if path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.is_symlink():
                target.symlink_to(path.readlink())
        elif path.is_dir() and not target.is_dir():
            target.mkdir(parents=True)
            _mount(str(path), str(target), None, _MS_BIND | _MS_REC)
            _protect(target)
    for name in ("work", "tmp"):
        (root / name).mkdir()
        (root / name).chmod(0o777)
    (root / "dev").mkdir()
    for name in ("null", "urandom"):
        (root / "dev" / name).touch()
        _mount(f"/dev/{name}", str(root / "dev" / name), None, _MS_BIND)
    os.chroot(root)
    os.chdir("/work")


def drop_privileges(user_id: int) -> None:
    """No capability in the namespace, and none to be gained: the read-only mounts cannot be undone.

    `user_id` is 0 where the process is not really root. Else it is one that no other process has, because the limit on
    processes counts all of a user's.
    """
    for capability in range(64):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if user_id:
        os.setgroups([])
        os.setresgid(user_id, user_id, user_id)
        os.setresuid(user_id, user_id, user_id)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def set_limits(cpu_seconds: int, memory_bytes: int, processes: int, file_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def main(arguments: list[str]) -> None:
    """`arguments`: role, folder, site-packages, user id, channel (a socket's descriptor, -1 for none), limits."""
    role, folder, site_packages = arguments[0], Path(arguments[1]), Path(arguments[2])
    user_id, channel, *limits = map(int, arguments[3:])
    # Python's own handler would end this process at a signal that its child sends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # Several processes may each take what one may: when the machine runs short, they go before the evaluation does.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        program = (folder / "program.py").read_text(encoding="utf-8")
        os.dup2(os.open(folder / "stdin", os.O_RDONLY), 0)
        build_root(folder, site_packages)
        if channel >= 0:
            os.dup2(channel, _CHANNEL)
        os.closerange(_CHANNEL if channel < 0 else _CHANNEL + 1, max(256, channel + 1))
        drop_privileges(user_id)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(SETUP_FAILED)
    # This process is the first of its namespace and as such immune to signals, CPU limits included: a child runs the
    # program, and all processes end with this one.
    child = os.fork()
    if child == 0:
        os.setsid()  # the process group reaches out of the namespace
        signal.signal(signal.SIGINT, signal.default_int_handler)
        set_limits(*limits)
        sys.argv = ["program.py"]
        sys.path.append(_PACKAGES)
        _ROLES[role](program)
        return  # and ends as any program: waits for its threads, flushes, says so by its exit code
    if channel >= 0:
        os.close(_CHANNEL)
    _, status = os.waitpid(child, 0)
    if status == 0:
        os._exit(COMPLETED)
    if os.WIFSIGNALED(status):
        print(f"killed: {signal.strsignal(os.WTERMSIG(status))}", file=sys.stderr)
    os._exit(ENDED_EARLY)


def _with_channel(run: Callable[[str, io.BufferedRWPair], None]) -> Callable[[str], None]:
    channel = partial(io.FileIO, _CHANNEL, closefd=False)
    return lambda program: run(program, io.BufferedRWPair(channel("r"), channel("w")))


_ROLES: dict[str, Callable[[str], object]] = {
    "script": run_program,
    "answers": _with_channel(serve),
    "tests": _with_channel(run_tests),
}
