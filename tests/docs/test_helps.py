"""Every program beside `smollm3` answers --help with its usage, and refuses an option that it does not know."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

# eval/sandbox.py starts it as the first process of its namespaces; nobody types it.
INSIDE_THE_SANDBOX = "eval/sandbox_inside.py"
TYPED = re.findall(r"-m (tests\.\w+)", Path("Makefile").read_text())  # the programs that lie among the tests
OTHERS = ("slurm/submit", "slurm/dev-cluster", "tools/find-python")

# Runs every program with each option in a fork of one process: torch is imported once.
RUNNER = """
import io, json, os, runpy, sys, torch, transformers
def run(program, option):
    sys.argv = [program, option]
    module = program.removesuffix(".py").replace("/", ".").removesuffix(".__main__")
    if program.startswith("bench/"):
        sys.path.insert(0, "bench")
        return runpy.run_path(program, run_name="__main__")
    return runpy.run_module(module, run_name="__main__", alter_sys=True)
answers = {}
for program, option in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(writing, 1), os.dup2(writing, 2)
        code = 0
        try:
            run(program, option)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as error:
            print(repr(error))
            code = 1
        sys.stdout.flush()
        os._exit(code)
    os.close(writing)
    text = os.fdopen(reading).read()
    answers[program + " " + option] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text
print(json.dumps(answers))
"""


def programs() -> list[str]:
    tracked = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    mains = [name for name in tracked if name.endswith("__main__.py") or _runs(Path(name).read_text())]
    typed = {module.replace(".", "/") + ".py" for module in TYPED}
    return [name for name in mains if name != INSIDE_THE_SANDBOX and (name in typed or not name.startswith("tests/"))]


def _runs(source: str) -> bool:
    return re.search(r'^if __name__ == "__main__":', source, re.MULTILINE) is not None


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[int, str]]:
    """Exit code and output by program and option."""
    asked = json.dumps([(program, option) for program in programs() for option in ("--help", "--no-such-option")])
    done = subprocess.run([sys.executable, "-c", RUNNER, asked], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_walk_finds_the_programs() -> None:
    found = programs()
    assert {"nanotron_ext/train/__main__.py", "posttrain/train.py", "bench/merge.py", "tests/chaos.py"} <= set(found)


@pytest.mark.parametrize("program", programs())
def test_help_says_how_to_use_it(answers: dict[str, tuple[int, str]], program: str) -> None:
    code, text = answers[f"{program} --help"]
    assert code == 0 and text.lower().startswith("usage: "), text


@pytest.mark.parametrize("program", programs())
def test_an_unknown_option_is_refused(answers: dict[str, tuple[int, str]], program: str) -> None:
    code, text = answers[f"{program} --no-such-option"]
    assert code == 2 and "usage: " in text.lower() and "Traceback" not in text, text


@pytest.mark.parametrize("script", OTHERS)
def test_scripts_say_how_to_use_them(script: str) -> None:
    done = subprocess.run([script, "--help"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0 and Path(script).name in done.stdout, done
