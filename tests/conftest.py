"""Shared test set-up: tests run from the repository's root, whatever folder pytest was started in."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.chdir(Path(__file__).parent.parent)


@pytest.fixture(autouse=True)
def _run_folder_of_one_test_is_not_the_next_ones() -> Iterator[None]:
    """Commands set RUN for the recipes that they load; within one process that outlives them."""
    before = os.environ.get("RUN")
    yield
    if before is None:
        os.environ.pop("RUN", None)
    else:
        os.environ["RUN"] = before
