"""The project's wheel on every Python that it is for and that is at hand: its command works in an unrelated folder.

The environments hold every package of constraints.txt but torch, which takes 6 GB with CUDA's libraries and on which
`--help` must not wait; tests/test_constraints.py resolves it for each Python.
"""

import fcntl
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.compat.environments import CACHE

REQUIRED = tomllib.loads(Path("pyproject.toml").read_text())["project"]["requires-python"]
LOWEST, ABOVE = (int(minor) for minor in re.findall(r"3\.(\d+)", REQUIRED))
EXAMINE = """
import json
from check import doctor
from foundation.recipe import load_recipe
print(doctor.to_json(doctor.examine()))
assert load_recipe("recipes/tiny/pretrain_stage1.yaml").last_step > 0
"""


def run(*command: str | Path, folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}"
    return done.stdout


def python_at_hand(minor: int) -> Path | None:
    """One that runs: a command python3.<minor> may be a version manager's without a Python behind it."""
    named = [found] if (found := shutil.which(f"python3.{minor}")) else []
    managed = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python3.{minor}"))
    running = [sys.executable] if sys.version_info[1] == minor else []
    for candidate in [*running, *named, *map(str, managed)]:
        answer = subprocess.run([candidate, "-m", "venv", "--help"], capture_output=True, check=False)
        if answer.returncode == 0:
            return Path(candidate)
    return None


@pytest.fixture(params=range(LOWEST, ABOVE), ids=lambda minor: f"3.{minor}")
def environment(request: pytest.FixtureRequest, built: Path, tmp_path: Path) -> Path:
    """An environment with the project's wheel and the packages of another, which is kept in the cache: 1.5 GB each."""
    python = python_at_hand(request.param)
    if python is None:
        pytest.skip(f"no Python 3.{request.param} here")
    packages = CACHE / f"packages-python-3.{request.param}"
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = tmp_path / "lock.txt"
    lock.write_text(re.sub(r"^torch==.*\n", "", Path("constraints.txt").read_text(), flags=re.MULTILINE))
    with (CACHE / f"{packages.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several test processes may want it at once
        if not (packages / "bin" / "python").exists():
            run(python, "-m", "venv", packages)
        pip = (packages / "bin" / "python", "-m", "pip")
        run(*pip, "install", "--quiet", "--no-deps", "--requirement", lock)
    folder = tmp_path / "environment"
    run(packages / "bin" / "python", "-m", "venv", "--without-pip", folder)
    [theirs], [ours] = packages.glob("lib/python*/site-packages"), folder.glob("lib/python*/site-packages")
    (ours / "packages.pth").write_text(f"{theirs}\n")
    [wheel] = built.glob("*.whl")
    run(*pip, "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", wheel)
    return folder


@pytest.mark.compat
def test_the_packages_and_the_project_are_all_that_is_needed_but_torch(environment: Path, tmp_path: Path) -> None:
    """Two to five minutes for each Python when its packages are fetched, seconds later."""
    findings = json.loads(run(environment / "bin" / "python", "-c", EXAMINE, folder=tmp_path))["findings"]
    assert [finding["name"] for finding in findings if finding["state"] == "broken"] == ["torch"]
    [versions] = [finding["found"] for finding in findings if finding["name"] == "versions"]
    as_locked, needed = map(int, re.findall(r"^(\d+) of (\d+) as in constraints-cuda.txt$", versions)[0])
    assert as_locked == needed - 1 > 150


@pytest.mark.compat
def test_the_command_works_in_an_unrelated_folder(environment: Path, tmp_path: Path) -> None:
    command = run(environment / "bin" / "smollm3", "--help", folder=tmp_path)
    module = run(environment / "bin" / "python", "-m", "smollm3", "--help", folder=tmp_path)
    assert "doctor" in command and "doctor" in module
