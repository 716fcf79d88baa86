"""Files and folders replaced by newer ones, so that a kill at any moment leaves one of the two whole."""

import os
import shutil
from pathlib import Path
from typing import IO, Any


def put_in_place(new: Path, place: Path) -> None:
    """Give the finished folder `new` the name `place`, on the same disk; only then is what had that name deleted.

    A kill between the two renames leaves nothing in `place`: `restore` brings the old folder back.
    """
    old = _aside(place)
    if place.exists():
        flush_tree(new)  # a power cut must not take the new one after the old one is gone
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


def write_atomically(path: Path, text: str) -> None:
    """Readers see the old content or the new one, never a part."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        flush_file(file)
    temporary.replace(path)
    flush(path.parent)


def flush_file(file: IO[Any]) -> None:
    """Have the disk hold what was written to an open file."""
    file.flush()
    os.fsync(file.fileno())


def flush(path: Path) -> None:
    """Have the disk hold a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Have the disk hold every file below `folder`, and the entries of its folders."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        if not path.is_symlink():
            flush(path)


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.replaced")
