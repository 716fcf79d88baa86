"""Disks that fail in a save: the checkpoint before stays the newest, and the next start goes on from it."""

import ctypes
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from foundation.outcome import Outcome
from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointError, list_checkpoints
from nanotron_ext.train import persistence
from nanotron_ext.train.persistence import CheckpointWriter
from nanotron_ext.train.run import run
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

TOKENS = "{sequence_length: 16, train_steps: 8, micro_batch_size: 4}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    prepare(folder)
    return folder


def run_with_little_disk(recipe: Recipe) -> str:
    """Files may not exceed 20 kB from the second checkpoint on, as on a full disk."""
    write = persistence._write

    def write_on_a_full_disk(folder: Path, *arguments: Any) -> Any:
        if folder.name == "8.tmp":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return write(folder, *arguments)

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    persistence._write = write_on_a_full_disk
    try:
        run(recipe)
    except CheckpointError as error:
        return str(error)
    return "no error"


def test_a_disk_that_fills_up_in_a_save_leaves_the_checkpoint_before(root: Path) -> None:
    recipe = tiny_recipe(root, general__run="full", parallelism="{dp: 1}", tokens=TOKENS)
    [message] = run_ranks(run_with_little_disk, 1, recipe)
    assert "could not write" in message and "8.tmp" in message and "goes on from the checkpoint before" in message
    assert [path.name for path in list_checkpoints(recipe.run_folder)] == ["4"]
    assert (recipe.run_folder / "latest").read_text() == "4"
    assert run_ranks(run, 1, recipe) == [Outcome("finished", 8)]


def drop_privileges() -> None:
    """Root may write anywhere; without its capabilities it has to keep to the permissions of folders."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the kernel's interface, this thread
    if os.geteuid() == 0 and ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError("capset failed")


def run_in_a_folder_that_closes(recipe: Recipe) -> str:
    """The folder of checkpoints loses its write permission after the first one."""
    drop_privileges()
    start = CheckpointWriter.start

    def start_without_permission(writer: CheckpointWriter, step: int, *arguments: Any) -> None:
        if step == 8:
            writer.commit()
            (recipe.run_folder / "checkpoints").chmod(0o555)
        start(writer, step, *arguments)

    CheckpointWriter.start = start_without_permission  # type: ignore[method-assign]
    try:
        run(recipe)
    except CheckpointError as error:
        return str(error)
    return "no error"


def run_without_privileges(recipe: Recipe) -> Outcome:
    drop_privileges()
    return run(recipe)


def test_a_folder_without_write_permission(root: Path) -> None:
    recipe = tiny_recipe(root, general__run="closed", parallelism="{dp: 1}", tokens=TOKENS)
    [message] = run_ranks(run_in_a_folder_that_closes, 1, recipe)
    assert "could not write" in message and "8.tmp" in message and "Permission denied" in message
    assert [path.name for path in list_checkpoints(recipe.run_folder)] == ["4"]
    with pytest.raises(RuntimeError, match=r"checkpoints is not writable. Set general.runs_path"):
        run_ranks(run_without_privileges, 1, recipe)
    (recipe.run_folder / "checkpoints").chmod(0o755)
    assert run_ranks(run_without_privileges, 1, recipe) == [Outcome("finished", 8)]
