"""Unpacking on every Python that the project supports."""

import tarfile
from pathlib import Path

SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.2 has none


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as file:
        file.extractall(folder, **SAFELY)
