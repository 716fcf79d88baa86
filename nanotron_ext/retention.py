"""Which checkpoints of a run stay: the last few, every n-th for ever, and those that somebody reads or uploads.

A recipe that comes to keep less than before prunes what is written from then on: what it finds was kept on purpose, or
by a recipe that said nothing, and stays until `smollm3 checkpoints prune` deletes it.

Checkpoints newer than the one written last are those behind which a run went, since they could not be read: they
stay, and are not counted, or what was written since would go in their favour.
"""

import contextlib
import fcntl
import logging
from collections.abc import Collection, Iterator
from pathlib import Path

from foundation.progress import unwatched
from foundation.recipe import Recipe, load_recipe
from nanotron_ext import ledger
from nanotron_ext.checkpoint import (
    MANIFEST,
    RECIPE_FILE,
    CheckpointError,
    delete_checkpoint,
    list_checkpoints,
    step_written_last,
)
from nanotron_ext.reading import Advance

logger = logging.getLogger("nanotron_ext.train")


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


EVENT = "keeping other checkpoints"  # in the ledger


def spared_up_to(recipe: Recipe, step: int) -> int:
    """The step up to which a run that goes on from `step` prunes nothing; 0 where all follows the recipe.

    To be asked before the run folder's recipe is replaced by this one.
    """
    run_folder = recipe.run_folder
    before = _spared_before(run_folder)
    saved = run_folder / RECIPE_FILE
    if not saved.is_file() or _policy(recipe) == _policy(load_recipe(saved)) or recipe.checkpoints.keep_last is None:
        return before
    return max(before, step)


def announce_spared(recipe: Recipe, spared: int) -> None:
    """Say which checkpoints stay, and have the ledger hold it for later starts. For the first rank."""
    if spared == _spared_before(recipe.run_folder):
        return
    keep_last, keep_every_steps = _policy(recipe)
    every = "" if keep_every_steps is None else f" --keep-every-steps {keep_every_steps}"
    logger.warning(
        f"checkpoints.keep_last and keep_every_steps are not those of before: they hold for checkpoints behind step "
        f"{spared}, and older ones stay. To delete those too: smollm3 checkpoints prune {recipe.run_folder} "
        f"--keep-last {keep_last}{every}"
    )
    ledger.record(recipe.run_folder, EVENT, spared_up_to=spared)


def _spared_before(run_folder: Path) -> int:
    """By what the ledger says. A rewind takes later checkpoints away; new ones at their steps follow the recipe."""
    spared = 0
    for entry in ledger.read(run_folder, EVENT, "rewind"):
        spared = min(spared, entry["to_step"]) if entry["event"] == "rewind" else max(spared, entry["spared_up_to"])
    return spared


def _policy(recipe: Recipe) -> tuple[int | None, int | None]:
    return recipe.checkpoints.keep_last, recipe.checkpoints.keep_every_steps


def superfluous(run_folder: Path, keep_last: int | None, keep_every_steps: int | None, spared: int = 0) -> list[Path]:
    """All but the last `keep_last` checkpoints and those of every `keep_every_steps`-th step, oldest first.

    None for `keep_last` keeps all; those up to step `spared` stay, and those newer than the one written last.
    """
    if keep_last is None:
        return []
    newest = step_written_last(run_folder)
    counted = [path for path in list_checkpoints(run_folder) if newest is None or int(path.name) <= newest]
    old = [path for path in counted[:-keep_last] if int(path.name) > spared]
    return [path for path in old if keep_every_steps is None or int(path.name) % keep_every_steps]


def prune_checkpoints(
    run_folder: Path,
    keep_last: int | None,
    keep_every_steps: int | None,
    needed: Collection[Path] = (),
    advance: Advance = unwatched,
    spared: int = 0,
) -> list[Path]:
    """Delete what is superfluous, save what is `needed` or in use; returns what was deleted."""
    pruned = []
    for path in superfluous(run_folder, keep_last, keep_every_steps, spared):
        if path not in needed and not is_in_use(path):
            delete_checkpoint(path)
            advance(0)
            pruned.append(path)
    return pruned
