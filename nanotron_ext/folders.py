"""Finished folders replaced by newer ones, so that a kill at any moment leaves one of the two whole."""

import os
import shutil
from pathlib import Path


def put_in_place(new: Path, place: Path) -> None:
    """Give the finished folder `new` the name `place`, on the same disk; only then is what had that name deleted.

    A kill between the two renames leaves nothing in `place`: `restore` brings the old folder back.
    """
    old = _aside(place)
    if place.exists():
        flush_folder(new)  # a power cut must not take the new one after the old one is gone
        restore(place)
        place.rename(old)
    new.rename(place)
    if old.exists():
        shutil.rmtree(old)


def restore(place: Path) -> None:
    """Undo, or finish, what a kill interrupted in `put_in_place`."""
    old = _aside(place)
    if not old.exists():
        return
    if place.exists():
        shutil.rmtree(old)
    else:
        old.rename(place)


def flush_folder(folder: Path) -> None:
    """Have the disk hold every file below `folder`, and the entries of its folders."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        if path.is_symlink():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")
