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
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from foundation.errors import UserError
from foundation.files import open_lock, write_atomically
from foundation.plain_text import plain
from foundation.recipe import Recipe, load_recipe
from foundation.wandb_run import wandb_mode
from nanotron_ext.checkpoint import (
    RECIPE_FILE,
    CheckpointError,
    CheckpointReader,
    newest_first,
    resolve_checkpoint,
    versions,
)
from nanotron_ext.data.loader import MixtureLoader
from nanotron_ext.data.start import RUN_START, DataStart, data_start
from nanotron_ext.engine import node_name
from nanotron_ext.ledger import Samples, skipped_samples
from nanotron_ext.retention import spared_up_to
from nanotron_ext.storage import fetch_newest
from nanotron_ext.train.changes import accepted_changes, differences, harmless_changes, in_lines, result_changes

logger = logging.getLogger("nanotron_ext.train")

LOCK_FILE = "training.lock"
ALONE_SECONDS = 3.0  # torchrun notices a failed rank every 0.1 s
LOCK_WAIT_SECONDS = 10.0  # a killed process keeps its lock until the kernel has freed its memory


class StartupError(UserError):
    """The run cannot start as asked; nothing was written."""


@dataclass(frozen=True)
class Preflight:
    """What the checks found out."""

    checkpoint: CheckpointReader | None  # to continue from
    weights: CheckpointReader | None  # to start a new run from, when there is nothing to continue
    changes: dict[str, list[Any]]  # of the recipe, agreed to, that alter the result: key -> [old, new]
    skipped: list[Samples]  # ranges of samples that the run leaves out
    data_start: DataStart  # where the recipe's data begins
    data: dict[str, Any]  # where each source goes on, and a digest of its files
    tracking_mode: str  # of wandb
    spared: int = 0  # step up to which no checkpoint is pruned
    usable: Collection[Path] | None = None  # checkpoints that all machines have; None: whatever one has


def preflight(recipe: Recipe, world_size: int, usable: Collection[Path] | None = None) -> Preflight:
    """All checks of this module, cheap ones first.

    Raises:
        UserError: a StartupError, CheckpointError, ShardError or TrackingError that says what to do.
    """
    check_surroundings(recipe, world_size)
    section, checkpoint, weights = recipe.checkpoints, find_checkpoint(recipe, usable), None
    if checkpoint is None:
        check_run_folder(recipe)
    if checkpoint is None and section.load_weights_path:
        weights = CheckpointReader(resolve_checkpoint(Path(section.load_weights_path), "checkpoints.load_weights_path"))
    return examine(recipe, checkpoint, weights, usable)


def check_surroundings(recipe: Recipe, world_size: int) -> None:
    """What each rank looks at before it can talk to the others; nothing of it grows with a run's age.

    Raises:
        UserError: a StartupError or CheckpointError.
    """
    check_world_size(recipe, world_size)
    check_not_running(recipe)
    check_disk_space(recipe)


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
            print(plain(f"error: Rank {rank} on {node_name()}: {error}"), file=sys.stderr, flush=True)
        raise


@contextlib.contextmanager
def ended_with_others() -> Iterator[None]:
    """Let torchrun's SIGTERM end this rank when its connections break, for the time before ranks watch each other.

    Most likely another one was stopped, and so is this one then, which is no crash.
    """
    try:
        yield
    except RuntimeError:  # of gloo and NCCL
        time.sleep(ALONE_SECONDS)
        raise


def examine(
    recipe: Recipe,
    checkpoint: CheckpointReader | None,
    weights: CheckpointReader | None,
    usable: Collection[Path] | None = None,
    is_agreed: bool = False,
) -> Preflight:
    """What follows from what the run goes on from: `checkpoint`, else `weights`, else nothing.

    `is_agreed`: it is older than the newest one, and what changed since then was agreed to when it changed.

    Raises:
        UserError: a CheckpointError, ShardError or TrackingError, when the recipe or the data do not fit it.
    """
    tracking_mode = wandb_mode(recipe)
    changes = {}
    if checkpoint is not None and is_agreed:
        changes = result_changes(Recipe.model_validate(checkpoint.manifest["recipe"]), recipe)
    elif checkpoint is not None:
        changes = recipe_changes(recipe, checkpoint)
    before = checkpoint.manifest.get("skipped_samples", []) if checkpoint else []
    skipped = skipped_samples(recipe.run_folder, before)
    start, data = check_data(recipe, checkpoint, skipped)
    spared = spared_up_to(recipe, checkpoint.step if checkpoint else 0)
    return Preflight(checkpoint, weights, changes, skipped, start, data, tracking_mode, spared, usable)


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
    """Raises CheckpointError when a run of another recipe began here, and the change was not agreed to."""
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


def find_checkpoint(
    recipe: Recipe, usable: Collection[Path] | None = None, before: int | None = None
) -> CheckpointReader | None:
    """The newest checkpoint to continue: of the run's own, else the last of the run that the recipe names.

    Of the run's own, those that are not whole are left out with a warning, as are those not `usable`, and those of step
    `before` and later. An older one is opened when all newer ones are left out. A newer one in object storage is
    brought here first.

    Raises:
        CheckpointError: when there should be one and is none, or the other way round.
    """
    section = recipe.checkpoints
    if section.remote_path is not None and section.resume != "never" and before is None:
        fetch_newest(recipe)
    newest = None
    for path in newest_first(recipe.run_folder):
        newest = newest or path
        if section.resume == "never":
            raise CheckpointError(
                f"checkpoints.resume is never, but {recipe.run_folder} has checkpoints up to step {path.name}. Choose "
                f"another general.run, or set resume to auto to go on from there."
            )
        if (usable is not None and path not in usable) or (before is not None and int(path.name) >= before):
            continue
        try:
            return CheckpointReader(path)
        except CheckpointError as error:
            logger.warning(f"Skipping checkpoint {path}: {error}")
    if before is not None:
        return None
    if newest is not None:
        where = "" if usable is None else " on all machines"
        raise CheckpointError(
            f"No checkpoint in {recipe.run_folder} is whole{where}; restore one, up to {newest.name}."
        )
    if section.resume_checkpoint_path:
        return CheckpointReader(
            resolve_checkpoint(Path(section.resume_checkpoint_path), "checkpoints.resume_checkpoint_path")
        )
    if section.resume == "required":
        raise CheckpointError(f"checkpoints.resume is required, but {recipe.run_folder} has no checkpoint.")
    return None


def recipe_changes(recipe: Recipe, checkpoint: CheckpointReader) -> dict[str, list[Any]]:
    """What the recipe changes about the result of the run that it continues; also says what it changes otherwise.

    The newest checkpoint counts: what changed before it was agreed to then.

    Raises:
        CheckpointError: for changes that are impossible, or were not agreed to.
    """
    if "recipe" not in checkpoint.manifest:
        raise CheckpointError(
            f"{checkpoint.folder} is no run's checkpoint but imported weights. Start from them with "
            f"checkpoints.load_weights_path, not resume_checkpoint_path."
        )
    before = checkpoint.manifest["recipe"]
    changes = accepted_changes(recipe, before, checkpoint.folder)
    if changes:
        logger.warning(f"The recipe changes the result, as agreed:\n{in_lines(changes)}")
    if harmless := harmless_changes(recipe, before):
        logger.info(f"The recipe differs from the checkpoint's, but not in the result:\n{in_lines(harmless)}")
    if updated := differences(checkpoint.manifest.get("versions", {}), versions()):
        named = ", ".join(f"{name} {old} then, {new} now" for name, old, new in updated)
        logger.warning(f"Other versions than at the checkpoint may change the last bits of the result: {named}.")
    return changes


def check_data(
    recipe: Recipe, checkpoint: CheckpointReader | None, skipped: list[Samples]
) -> tuple[DataStart, dict[str, Any]]:
    """Open every source, and make sure that a continued run goes on with the data where it stopped.

    Returns where the recipe's data begins, and `data_state` at the checkpoint.

    Raises:
        ShardError: naming every source that is missing or damaged.
        CheckpointError: when the files of a source changed since the checkpoint.
    """
    start = data_start(recipe, checkpoint.manifest, skipped) if checkpoint is not None else RUN_START
    loader = MixtureLoader(recipe, 0, recipe.parallelism.dp, skipped, start)
    if checkpoint is None:
        return start, data_state(loader, 0)
    then, now = checkpoint.manifest["data"], data_state(loader, checkpoint.step)
    known = {source: record for source, record in now.items() if source in then or start.step < checkpoint.step}
    changed = [f"  {key}: {old} then, {new} now" for key, old, new in differences(then, known)]
    if changed:
        raise CheckpointError(
            f"The data under {recipe.data.path} is not what {checkpoint.folder} was trained on: restore its files, or "
            f"give a source with other files another name; leave data.continue_from as it was. What differs by step "
            f"{checkpoint.step}:\n" + "\n".join(changed[:12])
        )
    return start, now


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
