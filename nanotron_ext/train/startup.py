"""What must hold before a run may start; checked by each rank alone, before anything is written."""

import contextlib
import dataclasses
import fcntl
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from foundation.errors import UserError
from foundation.files import open_lock, write_atomically
from foundation.recipe import Recipe, load_recipe
from foundation.wandb_run import wandb_mode
from nanotron_ext.checkpoint import (
    RECIPE_FILE,
    CheckpointError,
    CheckpointReader,
    list_checkpoints,
    resolve_checkpoint,
    versions,
)
from nanotron_ext.data.loader import MixtureLoader
from nanotron_ext.engine import node_name
from nanotron_ext.ledger import Samples, skipped_samples
from nanotron_ext.storage import fetch_newest
from nanotron_ext.train.changes import accepted_changes, differences, harmless_changes, in_lines

logger = logging.getLogger("nanotron_ext.train")

LOCK_FILE = "training.lock"
ALONE_SECONDS = 3.0  # torchrun notices a failed rank every 0.1 s
LOCK_WAIT_SECONDS = 10.0  # a killed process keeps its lock until the kernel has freed its memory


class StartupError(UserError):
    """The run cannot start as asked; nothing was written."""


@dataclass(frozen=True)
class Preflight:
    """What the checks found out."""

    checkpoints: list[CheckpointReader]  # to continue from, the newest first
    weights: CheckpointReader | None  # to start a new run from, when there is nothing to continue
    changes: dict[str, list[Any]]  # of the recipe, agreed to, that alter the result: key -> [old, new]
    skipped: list[Samples]  # ranges of samples that the run leaves out
    data: dict[str, Any]  # where each source goes on, and a digest of its files
    tracking_mode: str  # of wandb


def preflight(recipe: Recipe, world_size: int) -> Preflight:
    """All checks of this module, cheap ones first.

    Raises:
        UserError: a StartupError, CheckpointError, ShardError or TrackingError that says what to do.
    """
    check_world_size(recipe, world_size)
    check_not_running(recipe)
    check_run_folder(recipe)
    check_disk_space(recipe)
    checkpoints = find_checkpoints(recipe)
    weights = None
    if not checkpoints and recipe.checkpoints.load_weights_path:
        weights = CheckpointReader(resolve_checkpoint(Path(recipe.checkpoints.load_weights_path)))
    return examine(recipe, checkpoints, weights, wandb_mode(recipe))


@contextlib.contextmanager
def told_by_rank(rank: int) -> Iterator[None]:
    """Print a UserError of any rank but the first, whose errors are printed by whoever started it.

    For the time before ranks are connected, when none knows what the others found. What is wrong is wrong for all, as a
    rule: torchrun ends the other ranks of a machine before they repeat what the machine's first one says.
    """
    try:
        yield
    except UserError as error:
        if rank > 0:
            time.sleep(0 if os.environ.get("LOCAL_RANK") == "0" else ALONE_SECONDS)
            print(f"error: Rank {rank} on {node_name()}: {error}", file=sys.stderr, flush=True)
        raise


def examine(
    recipe: Recipe, checkpoints: list[CheckpointReader], weights: CheckpointReader | None, tracking_mode: str
) -> Preflight:
    """What follows from what the run goes on from: the newest of `checkpoints`, else `weights`, else nothing.

    Raises:
        UserError: a CheckpointError or ShardError, when the recipe or the data do not fit it.
    """
    changes = recipe_changes(recipe, checkpoints)
    before = checkpoints[0].manifest.get("skipped_samples", []) if checkpoints else []
    skipped = skipped_samples(recipe.run_folder, before)
    data = check_data(recipe, checkpoints[0] if checkpoints else None, skipped)
    return Preflight(checkpoints, weights, changes, skipped, data, tracking_mode)


def check_world_size(recipe: Recipe, world_size: int) -> None:
    """Raises StartupError when another number of processes was started than the recipe's layout needs."""
    parallelism = recipe.parallelism
    if world_size != parallelism.world_size:
        raise StartupError(
            f"The recipe's layout {parallelism} needs {parallelism.world_size} processes, but {world_size} were "
            f"started. Use `smollm3 train` on one machine, or a launcher of which nodes x processes is "
            f"{parallelism.world_size}, or change the parallelism section."
        )


def check_not_running(recipe: Recipe) -> None:
    """Raises StartupError when a job that holds `take_run_folder`'s lock trains in the run folder."""
    path = recipe.run_folder / LOCK_FILE
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            _lock(file, fcntl.LOCK_SH, recipe)


def take_run_folder(recipe: Recipe) -> TextIO:
    """Keep other jobs out for as long as the returned file is open, or until this process ends, however that ends.

    Raises:
        StartupError: when another job was faster.
    """
    recipe.run_folder.mkdir(parents=True, exist_ok=True)
    file = open_lock(recipe.run_folder / LOCK_FILE)
    _lock(file, fcntl.LOCK_EX, recipe)
    file.truncate(0)
    file.write(f"Process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _lock(file: TextIO, kind: int, recipe: Recipe) -> None:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while not _try_lock(file, kind):
        if time.monotonic() > deadline:
            file.seek(0)
            raise StartupError(
                f"{file.read().strip() or 'Another job'} is training in {recipe.run_folder} already. Wait for its end "
                f"or stop it; two jobs would spoil each other's checkpoints."
            )
        time.sleep(0.1)


def _try_lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def check_run_folder(recipe: Recipe) -> None:
    """Raises CheckpointError when the run folder holds a run of another recipe and the change was not agreed to."""
    saved = recipe.run_folder / RECIPE_FILE
    if saved.is_file():
        accepted_changes(recipe, load_recipe(saved).to_dict(), recipe.run_folder)


def check_disk_space(recipe: Recipe) -> None:
    """Raises StartupError when the next checkpoint would not fit beside what is there."""
    needed = recipe.checkpoint_bytes
    folder, free = _existing_parent(recipe.run_folder / "checkpoints"), free_disk_bytes(recipe)
    if free < needed * 1.05:
        raise StartupError(
            f"A checkpoint takes {needed / 1e9:.2f} GB, but {folder} has {free / 1e9:.2f} GB left. Free some space, or "
            f"set general.runs_path (or RUN) to a larger disk."
        )
    if not os.access(folder, os.W_OK):
        raise StartupError(f"{folder} is not writable. Set general.runs_path (or RUN) to a folder that is.")


def free_disk_bytes(recipe: Recipe) -> int:
    """Where the run's checkpoints are, or will be."""
    return shutil.disk_usage(_existing_parent(recipe.run_folder / "checkpoints")).free


def find_checkpoints(recipe: Recipe) -> list[CheckpointReader]:
    """Checkpoints to continue, the newest first: the run's own, else the last of the run that the recipe names.

    A newer one in object storage is brought here first.
    Own ones that are not whole are left out with a warning.

    Raises:
        CheckpointError: when there should be one and is none, or the other way round.
    """
    section = recipe.checkpoints
    if section.remote_path is not None and section.resume != "never":
        fetch_newest(recipe)
    own = list_checkpoints(recipe.run_folder)
    if own and section.resume == "never":
        raise CheckpointError(
            f"checkpoints.resume is never, but {recipe.run_folder} has checkpoints up to step {own[-1].name}. Choose "
            f"another general.run, or set resume to auto to go on from there."
        )
    readers = []
    for path in reversed(own):
        try:
            readers.append(CheckpointReader(path))
        except CheckpointError as error:
            logger.warning(f"Skipping checkpoint {path}: {error}")
    if own and not readers:
        raise CheckpointError(f"None of the {len(own)} checkpoints in {recipe.run_folder} is whole; restore one.")
    if not own and section.resume_checkpoint_path:
        readers.append(CheckpointReader(resolve_checkpoint(Path(section.resume_checkpoint_path))))
    if not readers and section.resume == "required":
        raise CheckpointError(f"checkpoints.resume is required, but {recipe.run_folder} has no checkpoint.")
    return readers


def recipe_changes(recipe: Recipe, checkpoints: list[CheckpointReader]) -> dict[str, list[Any]]:
    """What the recipe changes about the result of the run that it continues; also says what it changes otherwise.

    Raises:
        CheckpointError: for changes that were not agreed to.
    """
    found: list[dict[str, list[Any]]] = []
    for reader in checkpoints:
        if "recipe" not in reader.manifest:
            raise CheckpointError(
                f"{reader.folder} is no run's checkpoint but imported weights. Start from them with "
                f"checkpoints.load_weights_path, not resume_checkpoint_path."
            )
        found.append(accepted_changes(recipe, reader.manifest["recipe"], reader.folder))
    if found and found[0]:
        logger.warning(f"The recipe changes the result, as agreed:\n{in_lines(found[0])}")
    if found and (harmless := harmless_changes(recipe, checkpoints[0].manifest["recipe"])):
        logger.info(f"The recipe differs from the checkpoint's, but not in the result:\n{in_lines(harmless)}")
    if found and (updated := differences(checkpoints[0].manifest.get("versions", {}), versions())):
        named = ", ".join(f"{name} {old} then, {new} now" for name, old, new in updated)
        logger.warning(f"Other versions than at the checkpoint may change the last bits of the result: {named}.")
    return found[0] if found else {}


def check_data(recipe: Recipe, checkpoint: CheckpointReader | None, skipped: list[Samples]) -> dict[str, Any]:
    """Open every source, and make sure that a continued run goes on with the data it would have seen.

    Returns `data_state` at the checkpoint.

    Raises:
        ShardError: naming every source that is missing or damaged.
        CheckpointError: when the sources changed since the checkpoint.
    """
    loader = MixtureLoader(recipe, dp_rank=0, dp_size=recipe.parallelism.dp, skipped=skipped)
    if checkpoint is None:
        return data_state(loader, 0)
    then, now = checkpoint.manifest["data"], data_state(loader, checkpoint.step)
    changed = [f"  {key}: {old} then, {new} now" for key, old, new in differences(then, now)]
    if changed:
        raise CheckpointError(
            f"The data under {recipe.data.path} is not what {checkpoint.folder} was trained on; restore it, or start a "
            f"new run. What differs by step {checkpoint.step}:\n" + "\n".join(changed[:12])
        )
    return now


def data_state(loader: MixtureLoader, step: int) -> dict[str, Any]:
    """What each source has given after `step` steps, and a digest of its files, as plain JSON."""
    own = {
        source: {**dataclasses.asdict(progress), "files": loader.fingerprints[source]}
        for source, progress in loader.consumed(step).items()
    }
    return {**loader.carried_over, **own}


def save_recipe(recipe: Recipe) -> None:
    """Keep the resolved recipe with the run."""
    recipe.run_folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)
    write_atomically(recipe.run_folder / RECIPE_FILE, f"# Resolved recipe, hash {recipe.hash()}\n{text}")


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())
