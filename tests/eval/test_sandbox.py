"""The sandbox's walls, attacked."""

from pathlib import Path

import pytest

from eval.sandbox import Limits, SandboxError, check_sandbox, run_python

QUICK = Limits(wall_seconds=4, cpu_seconds=1)

try:
    check_sandbox()
except SandboxError as error:
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "while True: pass",
        "import time; time.sleep(60)",
        "x = bytearray(10 << 30)",
        "import os\nwhile True:\n    os.fork()",
        "import socket; socket.create_connection(('127.0.0.1', 80), 2)",
        "import socket; socket.create_connection(('1.1.1.1', 80), 2)",
        "open('/usr/written', 'w')",
        "import ctypes; libc = ctypes.CDLL(None); assert libc.mount(b'none', b'/usr', None, 4128, None) == 0",
        "open('big', 'wb').write(bytes(100 << 20))",
        "import os; os.kill(1, 9); os.kill(os.getppid(), 9); raise SystemExit",
        "assert 1 + 1 == 3",
        "def broken(:",
    ],
)
def test_attacks_and_failures_are_contained(program):
    assert not run_python(program, limits=QUICK).completed


def test_programs_that_finish_are_completed_with_their_output():
    assert run_python("import math, json, re, collections\nprint(int(input()) * 2)", stdin="21\n").output == "42\n"
    threads = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert run_python(threads).completed
    assert run_python("if __name__ == '__main__':\n    print('main')").output == "main\n"


def test_files_outside_are_neither_seen_nor_deleted(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    tmp_path.chmod(0o777)
    run_python(f"import os\nos.remove({str(precious)!r})")
    run_python(f"import shutil\nshutil.rmtree({str(tmp_path)!r})")
    assert precious.read_text() == "kept"
    assert run_python(f"import os\nassert not os.path.exists({str(Path(__file__))!r})").completed
