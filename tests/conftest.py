"""Shared test set-up: tests run from the repository's root, whatever folder pytest was started in."""

import os
from pathlib import Path

os.chdir(Path(__file__).parent.parent)
