"""constraints.txt is one set of versions for every Python that pyproject.toml allows, and leaves nothing open."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "smollm3-tests" / "uv"
PINNED = re.compile(r"^([\w.-]+)==([^\s;]+)", re.MULTILINE)
# Debian 12, Ubuntu 24.04 and Debian 13 have these; of 3.12 and 3.13 the first releases are the strictest test.
PYTHONS = ("3.11.2", "3.12.0", "3.13.0")
# The CUDA build of torch brings its libraries, and only it does.
BROUGHT_BY_CUDA = re.compile(r"nvidia-|cuda-|triton$")


def pins(text: str) -> dict[str, str]:
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PINNED.findall(text)}


@pytest.fixture(scope="module")
def uv() -> Path:
    """A resolver that evaluates markers for a Python that is not the running one, which pip cannot."""
    command = CACHE / "bin" / "uv"
    if not command.exists():
        install = (sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--target", str(CACHE), "uv==0.13.9")
        subprocess.run(install, check=True)
    return command


def resolve(uv: Path, python: str, constraints: Path) -> subprocess.CompletedProcess:
    arguments = ("--quiet", "--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--all-extras")
    command = [uv, "pip", "compile", *arguments, "--constraint", constraints, "pyproject.toml"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.compat
@pytest.mark.parametrize("python", PYTHONS)
def test_everything_is_had_at_the_pinned_version(uv: Path, python: str) -> None:
    answer = resolve(uv, python, Path("constraints.txt"))
    assert answer.returncode == 0, answer.stderr
    resolved, pinned = pins(answer.stdout), pins(Path("constraints.txt").read_text())
    assert {name: version for name, version in resolved.items() if pinned.get(name, version) != version} == {}
    assert {name for name in resolved if name not in pinned and not BROUGHT_BY_CUDA.match(name)} == set()


@pytest.mark.compat
def test_a_pin_that_needs_a_later_patch_release_is_found(uv: Path, tmp_path: Path) -> None:
    """soupsieve 4.1.2 asks for Python 3.11.5, which Debian 12 does not have."""
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(re.sub(r"soupsieve==\S+", "soupsieve==4.1.2", Path("constraints.txt").read_text()))
    answer = resolve(uv, "3.11.2", constraints)
    assert answer.returncode != 0 and "soupsieve==4.1.2 depends on Python>=3.11.5" in answer.stderr
    assert resolve(uv, "3.12.0", constraints).returncode == 0


def test_every_direct_dependency_is_pinned_alike() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    direct = pins(
        "\n".join(
            [*project["dependencies"], *(line for part in project["optional-dependencies"].values() for line in part)]
        )
    )
    pinned = pins(Path("constraints.txt").read_text())
    assert len(direct) > 30 and direct.items() <= pinned.items()
