"""Checkpoints in object storage: uploaded, verified, dropped here, fetched again; and storage that fails."""

import hashlib
import io
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from foundation.journal import read_metrics
from foundation.outcome import Outcome
from foundation.progress import Work
from foundation.recipe import Recipe
from nanotron_ext import storage
from nanotron_ext.checkpoint import CheckpointReader, list_checkpoints
from nanotron_ext.storage import UPLOADED, RemoteCheckpoints, StorageError, not_uploaded
from nanotron_ext.train.run import run
from tests.nanotron_ext.ranks import run_ranks
from tests.nanotron_ext.tiny_run import prepare, tiny_recipe

TOKENS = "{sequence_length: 16, train_steps: 8, micro_batch_size: 4, val_check_interval: 4, stop_step: %d}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    prepare(folder)
    return folder


def remote_recipe(root: Path, name: str, stop_step: int = 8, **checkpoints: Any) -> Recipe:
    """One replica, a checkpoint every second step."""
    section = {"checkpoint_interval": 2, "remote_path": f"file://{root}/bucket", **checkpoints}
    return tiny_recipe(
        root,
        general__run=name,
        parallelism="{dp: 1}",
        tokens=TOKENS % stop_step,
        checkpoints=str(section).replace("True", "true").replace("False", "false").replace("'", ""),
    )


def run_and_listen(recipe: Recipe, failing_puts: tuple[int, ...] = ()) -> tuple[Outcome, str]:
    """The run, and what it says; the n-th files to be uploaded fail."""
    heard = io.StringIO()
    logging.basicConfig(level="INFO", stream=heard, force=True)
    storage.FIRST_PAUSE_SECONDS = 0.01
    put, puts = RemoteCheckpoints._put, iter(range(1, 10**6))

    def put_or_fail(remote: RemoteCheckpoints, source: Path, target: str) -> None:
        if next(puts) in failing_puts:
            raise StorageError("The connection was reset.")
        put(remote, source, target)

    RemoteCheckpoints._put = put_or_fail  # type: ignore[method-assign]
    return run(recipe), heard.getvalue()


def steps(folder: Path) -> list[int]:
    return [int(path.name) for path in list_checkpoints(folder)]


def test_a_run_goes_on_from_storage_on_an_empty_machine(root: Path) -> None:
    """Uploads fail now and then; local copies go; then everything here is lost, and the newest there is damaged."""
    straight = remote_recipe(root, "straight", remote_path="null")
    run_ranks(run, 1, straight)
    recipe = remote_recipe(root, "moved", 6, keep_local=False)
    [(outcome, log)] = run_ranks(run_and_listen, 1, recipe, (2, 4, 5))
    assert outcome == Outcome("finished", 6)
    assert log.count("Upload failed, trying again") == 3 and log.count("Uploaded ") == 3
    assert steps(recipe.run_folder) == [6] and not_uploaded(recipe.run_folder) == []
    remote = RemoteCheckpoints(recipe)
    assert remote.steps() == [2, 4, 6]

    shutil.rmtree(recipe.run_folder)
    victim = next((root / "bucket" / "moved" / "6").glob("exp_avg-*"))
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    [(outcome, log)] = run_ranks(run_and_listen, 1, remote_recipe(root, "moved"))
    assert outcome == Outcome("finished", 8)
    assert "Skipping checkpoint 6 of" in log and f"{victim.name} does not match its checksum" in log
    assert "after step 4" in log
    losses = [row["loss"] for row in read_metrics(straight.run_folder)]
    assert [row["loss"] for row in read_metrics(recipe.run_folder)] == losses[4:]
    assert remote.steps() == [2, 4, 6, 8]
    assert CheckpointReader(root / "bucket" / "moved" / "6").damaged_files() == []  # replaced


def test_what_is_not_uploaded_is_not_deleted(root: Path) -> None:
    recipe = remote_recipe(root, "offline", keep_last=1, keep_local=False)
    [(outcome, log)] = run_ranks(run_and_listen, 1, recipe, tuple(range(3, 1000)))
    assert outcome == Outcome("finished", 8)
    assert "4 checkpoints are not in file://" in log and "smollm3 checkpoints upload" in log
    assert steps(recipe.run_folder) == [2, 4, 6, 8] and RemoteCheckpoints(recipe).steps() == []
    storage.upload_patiently(RemoteCheckpoints(recipe), recipe.run_folder / "checkpoints" / "2")
    assert RemoteCheckpoints(recipe).steps() == [2]
    assert run_ranks(run, 1, recipe) == [Outcome("finished", 8)]  # nothing to train, and storage works again
    assert RemoteCheckpoints(recipe).steps() == [2, 4, 6, 8] and steps(recipe.run_folder) == [8]
    assert (recipe.run_folder / "checkpoints" / "8" / UPLOADED).read_text() == f"file://{root}/bucket/offline/8"


def write_checkpoint(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(content)
    files = {"file": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    manifest = {"format": "smollm3-checkpoint/1", "step": int(folder.name), "recipe_hash": None, "files": files}
    (folder / "checkpoint.json").write_text(json.dumps(manifest))


def test_what_was_cut_short_here_is_replaced_from_storage(tmp_path: Path) -> None:
    recipe = remote_recipe(tmp_path, "cut")
    here = recipe.run_folder / "checkpoints"
    write_checkpoint(tmp_path / "bucket" / "cut" / "8", b"whole")
    write_checkpoint(here / "8", b"whole")
    (here / "8" / "file").write_bytes(b"who")
    RemoteCheckpoints(recipe).fetch(8, recipe.run_folder)
    assert steps(recipe.run_folder) == [8] and (here / "8" / "file").read_bytes() == b"whole"
    assert [path.read_bytes() for path in here.glob("8.damaged-*/file")] == [b"who"]


def test_a_long_file_is_sent_with_signs_of_life(tmp_path: Path) -> None:
    work = Work()
    remote = RemoteCheckpoints(remote_recipe(tmp_path, "long"), work.advance)
    content = bytes(range(256)) * (1 << 17)  # 32 MB
    (tmp_path / "file").write_bytes(content)
    target = tmp_path / "bucket" / "long" / "file"
    remote._put(tmp_path / "file", str(target))
    assert target.read_bytes() == content
    assert work.advances > 4


def test_storage_that_is_not_there(root: Path) -> None:
    recipe = remote_recipe(root, "nowhere", remote_path="nosuchprotocol://bucket")
    with pytest.raises(RuntimeError, match=r"nosuchprotocol://bucket/nowhere cannot be opened"):
        run_ranks(run, 1, recipe)
    assert not recipe.run_folder.exists()
