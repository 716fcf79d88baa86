"""Shared test set-up: tests run from the repository's root, whatever folder pytest was started in."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

os.chdir(Path(__file__).parent.parent)
NAMES = ("RUN", "RECIPES", "PROFILE")  # with which commands say which profile they chose; `make` exports them too
for name in NAMES:
    os.environ.pop(name, None)


@contextmanager
def _same_profile_afterwards() -> Iterator[None]:
    """Commands say in the environment which profile they chose; within one process that outlives them."""
    before = {name: os.environ[name] for name in NAMES if name in os.environ}
    yield
    for name in NAMES:
        os.environ.pop(name, None)
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _profile_of_one_test_is_not_the_next_ones() -> Iterator[None]:
    with _same_profile_afterwards():
        yield


@pytest.fixture(autouse=True, scope="module")
def _profile_of_a_modules_fixtures_is_not_the_next_ones() -> Iterator[None]:
    with _same_profile_afterwards():
        yield


_BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools replaces sys.argv
build_meta.build_sdist(out), build_meta.build_wheel(out)
"""


def build(source: Path, out: Path) -> None:
    """Write the source archive and the wheel of the project in `source` into `out`, with the setuptools at hand."""
    subprocess.run([sys.executable, "-c", _BUILD, str(out)], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel of a fresh checkout, in which somebody has set up a cluster."""
    checkout, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, check=True).stdout
    copy = f"tar --create --null --files-from=- | tar --extract --directory={checkout}"
    subprocess.run(copy, shell=True, input=listed, check=True)
    (checkout / "slurm" / "site.sh").write_text("export WANDB_API_KEY=secret\n")
    build(checkout, out)
    return out
