"""The run's state on disk: every rank writes its share of a checkpoint, and reads what its layout needs of one."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from nanotron_ext.checkpoint import (
    STATE_KINDS,
    CheckpointError,
    CheckpointReader,
    checkpoint_folder,
    describe_files,
    finish_checkpoint,
    prune_checkpoints,
    save_shard,
)
from nanotron_ext.engine import dist
from nanotron_ext.train.step import TrainState


class CheckpointWriter:
    """Writes checkpoints behind the training's back.

    `start` copies this rank's state to host memory and returns; a thread writes it. When no rank is writing any more,
    `commit` makes the checkpoint visible: until then it is `<step>.tmp`, and the one before stays the newest. At most
    one checkpoint is under way.
    """

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._manifest: dict[str, Any] = {}

    def start(self, step: int, data: dict[str, Any]) -> None:
        """Begin to write `<run>/checkpoints/<step>`. `data` is what each source has given so far."""
        self.finish()
        recipe, context = self._state.recipe, self._state.context
        temporary = self._temporary(step)
        if torch.distributed.get_rank() == 0:
            # What a killed attempt left, perhaps in another layout, must not be mixed with ours.
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        torch.distributed.barrier()
        self._manifest = {
            "step": step,
            "recipe_hash": recipe.hash(),
            "recipe": recipe.to_dict(),
            "model_config": recipe.architecture.model_dump(mode="json"),
            "dtype": recipe.model.dtype,
            "tokenizer": recipe.tokenizer.tokenizer_name_or_path,
            "data": data,
        }
        dp_rank = dist.get_rank(context.dp_pg)
        mine: dict[str, list[Any]] = {}
        if self._state.optimizer.sharded or dp_rank == 0:
            mine = {kind: list(_copied(self._state.optimizer.state(kind))) for kind in STATE_KINDS}
        rank_name = f"pp{dist.get_rank(context.pp_pg)}-tp{dist.get_rank(context.tp_pg)}-dp{dp_rank}"
        self._writing = self._thread.submit(_write, temporary, rank_name, mine)

    @property
    def is_busy(self) -> bool:
        """Whether this rank is still writing.

        Raises:
            CheckpointError: when the write failed; the checkpoint before stays the newest.
        """
        if self._writing is None or not self._writing.done():
            return self._writing is not None
        self._check_write()
        return False

    def commit(self) -> None:
        """Make the checkpoint visible. To be called on all ranks when none of them is busy."""
        if self._writing is None:
            return
        self._writing = None
        if torch.distributed.get_rank() == 0:
            recipe, step = self._state.recipe, self._manifest["step"]
            finish_checkpoint(self._temporary(step), checkpoint_folder(recipe.run_folder, step), self._manifest)
            prune_checkpoints(recipe.run_folder, recipe.checkpoints.keep_last, recipe.checkpoints.keep_every_steps)

    def finish(self) -> None:
        """Wait until what is under way is visible. To be called on all ranks."""
        if self._writing is None:
            return
        self._check_write()
        torch.distributed.barrier()
        self.commit()
        torch.distributed.barrier()

    def _check_write(self) -> None:
        assert self._writing is not None
        try:
            self._writing.result()
        except Exception as error:  # whatever it was, the run must not go on without checkpoints
            raise CheckpointError(
                f"Rank {torch.distributed.get_rank()} could not write {self._temporary(self._manifest['step'])}: "
                f"{error}. Free some space or repair the disk, and start the run again: it goes on from the checkpoint "
                f"before."
            ) from error

    def _temporary(self, step: int) -> Path:
        return checkpoint_folder(self._state.recipe.run_folder, step).with_suffix(".tmp")


def _copied(parts: Iterator[tuple[Any, int, torch.Tensor]]) -> Iterator[tuple[Any, int, torch.Tensor]]:
    for slot, start, tensor in parts:
        yield slot, start, tensor.detach().to("cpu", copy=True)


def _write(folder: Path, rank_name: str, parts_by_kind: dict[str, list[Any]]) -> None:
    """Write and flush one rank's files, and beside them what the manifest will say of them."""
    paths = []
    for kind, parts in parts_by_kind.items():
        path = save_shard(folder, kind, rank_name, iter(parts))
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        paths.append(path)
    describe_files(folder, rank_name, paths)


def verify_together(reader: CheckpointReader) -> list[str]:
    """Compare all files with their checksums, each rank a part of them; what is wrong, the same list on every rank."""
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = reader.damaged_files(rank, world_size)
    problems: list[list[str]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(problems, mine)
    return [problem for of_rank in problems for problem in of_rank]


def load_checkpoint(state: TrainState, reader: CheckpointReader) -> None:
    """Fill masters, Adam state and model from a checkpoint of any layout.

    Raises:
        CheckpointError: when it does not hold all of this model and its Adam state.
    """
    for kind in STATE_KINDS:
        _load_kind(state, reader, kind)
    state.optimizer.set_steps_taken(reader.step)
    state.optimizer.masters_to_model()


def load_weights(state: TrainState, reader: CheckpointReader) -> None:
    """Fill the model and its masters; Adam starts afresh.

    Raises:
        CheckpointError: when the checkpoint is of another architecture.
    """
    _load_kind(state, reader, "master")
    state.optimizer.masters_to_model()


def _load_kind(state: TrainState, reader: CheckpointReader, kind: str) -> None:
    for slot, start, local in state.optimizer.state(kind):
        entry = slot.entry
        whole = reader.read(kind, entry.name, expected_shape=entry.shape)
        local.copy_(entry.cut(whole).flatten()[start : start + local.numel()])
