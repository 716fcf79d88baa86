"""Files and folders replaced by newer ones, so that a kill at any moment leaves one of the two whole."""

import errno
import os
import shutil
from pathlib import Path
from typing import IO, Any, TextIO, cast

from foundation.errors import UserError


class LinkedFileError(UserError):
    """A file that is locked, or written under a name that others can guess, is a link to another one."""


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
    with _open_unlinked(temporary, os.O_WRONLY | os.O_TRUNC, "w") as file:
        file.write(text)
        flush_file(file)
    temporary.replace(path)
    flush(path.parent)


def open_lock(path: Path) -> TextIO:
    """The file `path`, to be locked, for reading and writing from its start; made if need be, and left as it is.

    Raises:
        LinkedFileError: if it is a link: somebody else could have put it there, to have another file overwritten.
    """
    return _open_unlinked(path, os.O_RDWR, "r+")


def _open_unlinked(path: Path, flags: int, mode: str) -> TextIO:
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise LinkedFileError(f"{path} is a link to another file, which would be overwritten. Remove it.") from None
    return cast(TextIO, os.fdopen(descriptor, mode, encoding="utf-8"))


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
