"""The sandbox as root and as an ordinary user, with and without what it is made of: it protects, or it refuses."""

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from eval.sandbox import SandboxError, check_sandbox

if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
    pytest.skip("the sandbox needs Linux with unshare", allow_module_level=True)

IS_ROOT = os.geteuid() == 0
NOBODY = 65534
TRY = """
from eval.sandbox import SandboxError, check_sandbox, run_script, run_tests
try:
    check_sandbox()
    assert run_tests("def f(x): return x + 1", "assert __answer__('f')(1) == 2").completed
    print("protects")
except SandboxError as error:
    print("refuses:", error)
"""
# What a container's default filter does: namespaces cannot be made, whoever asks.
UNSHARE = {"x86_64": 272, "aarch64": 97}.get(platform.machine())


def deny_unshare() -> None:
    """For a child before its program: from now on `unshare` is not permitted (seccomp(2), a filter of four lines)."""
    load, equals, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
    lines = [(load, 0, 0, 0), (equals, 0, 1, UNSHARE), (give, 0, 0, refuse), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0  # NO_NEW_PRIVS, SECCOMP


def try_it(*before: str, denied: bool = False, program: str = TRY) -> str:
    """What the program says, started by the words `before` it."""
    answer = subprocess.run(
        [*before, sys.executable, "-c", program], capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), "TMPDIR": "/tmp"},
        preexec_fn=deny_unshare if denied else None,
    )  # fmt: skip
    return answer.stdout + answer.stderr


# Words behind `bash -euc`: becomes a user without any privilege. Root's home, in which this Python may be installed, is
# opened to that user in a mount namespace of its own.
DROP = f"""
exec 9<"$2"
if [[ -n $1 ]]; then
  mount -t tmpfs -o mode=755 tmpfs "$1"
  mkdir -p "$2"
  mount --no-canonicalize --bind /proc/self/fd/9 "$2"
fi
exec 9<&-
shift 2
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""


def ordinary_user() -> list[str]:
    """Words that start a command as an ordinary user; none where the tests are no more than that themselves."""
    if not IS_ROOT:
        return []
    closed = [str(folder) for folder in Path(sys.base_prefix).parents if not folder.stat().st_mode & 1]
    return ["unshare", "--mount", "bash", "-euc", DROP, "bash", closed[0] if closed else "", sys.base_prefix]


needs_root = pytest.mark.skipif(not IS_ROOT, reason="only root can be root")
needs_filter = pytest.mark.skipif(UNSHARE is None, reason="the number of unshare is not known for this processor")


@needs_root
def test_root() -> None:
    assert try_it() == "protects\n"


def test_an_ordinary_user() -> None:
    program = f"import os; assert os.geteuid() == {NOBODY if IS_ROOT else os.geteuid()}" + TRY
    answer = try_it(*ordinary_user(), program=program)
    if answer.startswith("refuses") and Path("/proc/sys/user/max_user_namespaces").read_text().strip() == "0":
        pytest.skip("this machine has no user namespaces")
    assert answer == "protects\n"


DENY = """
import os, sys
from tests.eval.test_sandbox_users import deny_unshare
deny_unshare()
os.execvp(sys.argv[1], sys.argv[1:])
"""


@needs_filter
def test_an_ordinary_user_without_user_namespaces_is_refused() -> None:
    answer = try_it(*ordinary_user(), sys.executable, "-c", DENY)
    assert answer.startswith("refuses: The sandbox could not be set up"), answer


@needs_root
@needs_filter
def test_root_without_namespaces_is_refused() -> None:
    assert try_it(denied=True).startswith("refuses: The sandbox could not be set up")


@needs_root
def test_root_without_the_right_to_mount_is_refused() -> None:
    """As in most containers."""
    answer = try_it("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    assert answer.startswith("refuses: The sandbox could not be set up"), answer


def test_root_of_a_user_namespace_is_an_ordinary_user() -> None:
    """As in a container without privileges: it cannot become another user, so it needs a namespace of its own."""
    answer = try_it("unshare", "--user", "--map-root-user")
    assert answer == "protects\n" or answer.startswith(("refuses: ", "unshare: ")), answer
    if IS_ROOT:
        assert answer == "protects\n"


WRITES = """
import os
from eval.sandbox import Limits, run_script
seen = run_script("import os; print(os.path.ismount(PLACE), os.listdir(PLACE))")
written = run_script("open(PLACE + '/written', 'w')", limits=Limits(wall_seconds=5))
remounted = run_script("import ctypes; assert ctypes.CDLL(None).mount(b'none', PLACE.encode(), None, 4128, None) == 0")
print(seen.output.strip(), written.completed, remounted.completed, os.listdir(PLACE))
"""


@needs_root
@pytest.mark.parametrize("user", ["root", "ordinary"])
def test_what_is_mounted_below_the_system_is_read_only_too(user: str, tmp_path: Path) -> None:
    """A disk below /usr that everybody may write to: a recursive bind brings it along, a remount alone leaves it so."""
    place = "/usr/local/share"
    mount = f"mount -t tmpfs -o mode=777 tmpfs {place}; touch {place}/there; " + 'exec "$@"'
    words = ["unshare", "--mount", "bash", "-euc", mount, "bash", *(ordinary_user() if user == "ordinary" else [])]
    answer = try_it(*words, program=WRITES.replace("PLACE", repr(place)))
    assert answer == "True ['there'] False False ['there']\n", answer
    assert not Path(place, "there").exists()


def test_here_it_protects_or_says_why_not() -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        assert str(error)
