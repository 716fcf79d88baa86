"""Shared test set-up: tests run from the repository's root, whatever folder pytest was started in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.chdir(Path(__file__).parent.parent)


@pytest.fixture(autouse=True)
def _profile_of_one_test_is_not_the_next_ones() -> Iterator[None]:
    """Commands say in the environment which profile they chose; within one process that outlives them."""
    names = ("RUN", "RECIPES", "PROFILE")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)
