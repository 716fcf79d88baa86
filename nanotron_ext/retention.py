"""Which checkpoints of a run stay: the last few, every n-th for ever, and those that somebody reads or uploads."""

import contextlib
import fcntl
from collections.abc import Collection, Iterator
from pathlib import Path

from foundation.progress import unwatched
from nanotron_ext.checkpoint import MANIFEST, Advance, CheckpointError, delete_checkpoint, list_checkpoints


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Keep a checkpoint from being pruned, by any process, until the block is left or this process ends.

    Raises:
        CheckpointError: when it is gone.
    """
    try:
        manifest = (folder / MANIFEST).open()
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is gone; it was pruned or moved just now. Use a newer checkpoint.") from None
    with manifest:
        with contextlib.suppress(OSError):  # a file system without locks protects nothing
            fcntl.flock(manifest, fcntl.LOCK_SH)
        yield


def is_in_use(folder: Path) -> bool:
    with (folder / MANIFEST).open("r+") as manifest:  # NFS gives exclusive locks to writers only
        try:
            fcntl.flock(manifest, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def superfluous(run_folder: Path, keep_last: int | None, keep_every_steps: int | None) -> list[Path]:
    """All but the last `keep_last` checkpoints and those of every `keep_every_steps`-th step, oldest first.

    None for `keep_last` keeps all.
    """
    if keep_last is None:
        return []
    old = list_checkpoints(run_folder)[:-keep_last]
    return [path for path in old if keep_every_steps is None or int(path.name) % keep_every_steps]


def prune_checkpoints(
    run_folder: Path,
    keep_last: int | None,
    keep_every_steps: int | None,
    needed: Collection[Path] = (),
    advance: Advance = unwatched,
) -> list[Path]:
    """Delete what is superfluous, save what is `needed` or in use; returns what was deleted."""
    pruned = []
    for path in superfluous(run_folder, keep_last, keep_every_steps):
        if path not in needed and not is_in_use(path):
            delete_checkpoint(path)
            advance(0)
            pruned.append(path)
    return pruned
