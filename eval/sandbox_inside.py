"""First process inside the sandbox's namespaces: builds the file system, drops all privileges, runs the program.

Runs alone (`python -I -S`), with the standard library only. Its exit code says how it went; see the constants.
"""

import ctypes
import os
import resource
import sys
from pathlib import Path

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 38, 24
_PACKAGES = "/packages"
COMPLETED, ENDED_EARLY, SETUP_FAILED = 0, 96, 97
_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}{arguments}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), None if data is None else data.encode())


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
            _mount("none", str(target), None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
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


def main() -> None:
    folder, site_packages = Path(sys.argv[1]), Path(sys.argv[2])
    user_id, *limits = map(int, sys.argv[3:])
    try:
        program = (folder / "program.py").read_text(encoding="utf-8")
        os.dup2(os.open(folder / "stdin", os.O_RDONLY), 0)
        build_root(folder, site_packages)
        os.closerange(3, 256)
        drop_privileges(user_id)
    except OSError as error:
        print(error, file=sys.stderr)
        os._exit(SETUP_FAILED)
    # This process is the first of its namespace and as such immune to signals, CPU limits included: a child runs the
    # program, and all processes end with this one.
    finished, finish = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(finished)
        set_limits(*limits)
        sys.argv = ["program.py"]
        sys.path.append(_PACKAGES)
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        sys.stdout.flush()
        os.write(finish, b"1")
        os._exit(0)
    os.close(finish)
    _, status = os.waitpid(child, 0)
    if os.read(finished, 1) == b"1":
        os._exit(COMPLETED)
    signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if signal_number:
        print(f"killed by signal {signal_number}", file=sys.stderr)
    os._exit(ENDED_EARLY)


if __name__ == "__main__":
    main()
