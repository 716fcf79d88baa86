"""The sandbox's walls, attacked, and what crosses between a program and its tests."""

import contextlib
import json
import re
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy
import pytest

from eval.sandbox import Limits, SandboxError, check_sandbox, run_script, run_tests
from eval.sandbox_calls import AnswerError, decoded, encoded

QUICK = Limits(wall_seconds=8, cpu_seconds=1)

try:
    check_sandbox()
except SandboxError as error:
    pytest.skip(f"no sandbox on this machine: {error}", allow_module_level=True)


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "x = bytearray(10 << 30)",
        "import os\nwhile True:\n    os.fork()",
        "import socket; socket.create_connection(('127.0.0.1', 80), 2)",
        "import socket; socket.create_connection(('1.1.1.1', 80), 2)",
        "open('/usr/written', 'w')",
        "import ctypes; libc = ctypes.CDLL(None); assert libc.mount(b'none', b'/usr', None, 4128, None) == 0",
        "open('big', 'wb').write(bytes(100 << 20))",
        "import os; os.kill(1, 9); os.kill(os.getppid(), 9); raise SystemExit(1)",
        "import os; os.kill(1, 2); os.kill(0, 9)",
        "assert 1 + 1 == 3",
        "def broken(:",
    ],
)
def test_attacks_and_failures_are_contained(program):
    outcome = run_script(program, limits=QUICK)
    assert not outcome.completed and outcome.reason


def test_waiting_ends_too():
    assert run_script("import time; time.sleep(60)", limits=Limits(wall_seconds=1)).reason == "stopped after 1 s"
    wait = "def f():\n    import time\n    time.sleep(60)\n"
    assert run_tests(wait, "__answer__('f')()", Limits(wall_seconds=1)).reason == "stopped after 1 s"
    loop = "def f():\n    while True:\n        pass\n"
    assert run_tests(loop, "__answer__('f')()", QUICK).reason == "killed: CPU time limit exceeded"


def test_programs_that_finish_are_completed_with_their_output():
    assert run_script("import math, json, re, collections\nprint(int(input()) * 2)", stdin="21\n").output == "42\n"
    assert run_script("if __name__ == '__main__':\n    print('main')").output == "main\n"
    assert run_script("print(1)\nraise SystemExit").output == "1\n"
    # As on a platform, the program has not ended before its threads have.
    thread = "import threading, time\nthreading.Thread(target=lambda: time.sleep(0.1) or print('late')).start()"
    assert run_script(thread).output == "late\n"


def test_a_machine_that_runs_short_of_memory_kills_the_program_first():
    def adjustments():
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if "eval.sandbox_inside" in (line := (folder / "cmdline").read_text()) and "unshare" not in line:
                    yield int((folder / "oom_score_adj").read_text())

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run_script, "import time\ntime.sleep(3)", limits=QUICK)
        found: set[int] = set()
        while not waiting.done():
            found |= set(adjustments())
    assert 1000 in found


def test_files_outside_are_neither_seen_nor_deleted(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    tmp_path.chmod(0o777)
    run_script(f"import os\nos.remove({str(precious)!r})")
    run_script(f"import shutil\nshutil.rmtree({str(tmp_path)!r})")
    assert precious.read_text() == "kept"
    assert run_script(f"import os\nassert not os.path.exists({str(Path(__file__))!r})").completed


VALUES = [
    None, True, 7, -(10**9000), 1.5, float("inf"), 2 - 3j, "text", "half a pair \udc80", b"ab", bytearray(b"c"),
    [1, [2, (3, "4")]], (1,), (), {1, 2}, frozenset({3}), {(1, 2): [3], "a": {"b": None}}, {"tuple": [1]},
    range(1, 9, 2), Fraction(1, 3), Decimal("0.1"), numpy.float64(0.1), numpy.int64(3), numpy.bool_(True),
    numpy.str_("a"),
]  # fmt: skip


def crossed(value):
    return decoded(json.loads(json.dumps(encoded(value))))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_cross_with_their_type(value):
    result = crossed(value)
    assert result == value and type(result) is type(value)


def test_arrays_iterators_and_subclasses_cross_as_what_they_are():
    array = numpy.arange(6, dtype=numpy.int16).reshape(2, 3)
    result = crossed(array)
    assert result.dtype == array.dtype and (result == array).all()
    assert list(crossed(iter([1, 2]))) == list(crossed(deque([1, 2]))) == [1, 2]
    assert list(crossed({1: 2}.items())) == [(1, 2)]
    assert crossed(Counter("aab")) == {"a": 2, "b": 1} == crossed(OrderedDict(a=2, b=1))
    assert type(crossed(type("Mine", (int,), {})(3))) is int
    assert type(crossed(type("Mine", (str,), {"__str__": lambda self: "b"})("a"))) is str


def test_other_objects_are_something_and_equal_to_nothing():
    match = crossed(re.match("a", "a"))
    assert match is not None and match
    for compare in (lambda: match == 1, lambda: match != 1, lambda: match in [1], lambda: match < 1):
        with pytest.raises(AnswerError, match="Match"):
            compare()


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("import re\ndef f(x): return re.match('a', x)", "assert f('ab') is not None and f('b') is None"),
        ("def f(x): return (i for i in range(x))", "assert list(f(3)) == [0, 1, 2] and set(f(2)) == {0, 1}"),
        ("import numpy as np\ndef f(x): return np.mean(x)", "assert f([1, 2]) == 1.5 and isinstance(f([1]), float)"),
        ("def f(x, *, y=1): return x + y", "assert f(1) == 2 and f(1, y=5) == 6"),
        ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", "assert [f(), f(), f()] == [1, 2, 3]"),
        ("def f(x):\n    print('x' * 10_000)\n    return x", "assert all(f(i) == i for i in range(300))"),
        ("def f(n): return 1 if n == 0 else n * f(n - 1)", "import math; assert f(900) == math.factorial(900)"),
        ("import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)", "assert f(20_000) == 0"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x): return P(x).x",
            "assert f(1) == 1",
        ),
        ("import threading\ndef f(x): return x\nthreading.Thread(target=f, args=(1,)).start()", "assert f(2) == 2"),
    ],
)
def test_right_answers_of_many_styles_pass(program, tests):
    outcome = run_tests(program, f"f = __answer__('f')\n{tests}")
    assert outcome.completed, outcome.reason


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(x): return (1, 2)", "AssertionError"),
        ("def f(x): raise KeyError(x)", "KeyError: 1"),
        ("def f(x): return f(x)", "RecursionError"),
        ("def f(x):\n    y = []\n    y.append(y)\n    return y", "RecursionError"),
        ("import antigravity_of_mine", "ModuleNotFoundError"),
        ("def g(x): return x", "NameError: name 'f' is not defined"),
        ("def f(x): return f", "the answer holds a function, which cannot be compared"),
        ("import os\ndef f(x): os._exit(3)", "left with an exit code other than 0"),
        ("import os\ndef f(x): os._exit(0)", "the program ended before it answered"),
        ("import os\ndef f(x): os.write(3, bytes(40 << 20))", "too long"),
        ("import os\ndef f(x): os.write(3, b'[1]\\n')", "no value"),
    ],
)
def test_a_failed_test_has_its_reason(program, reason):
    outcome = run_tests(program, "assert __answer__('f')(1) == [1, 2]", QUICK)
    assert not outcome.completed and reason in outcome.reason
