"""The run's state on disk: every rank writes its share of a checkpoint, and reads what its layout needs of one."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from foundation.progress import Work, unwatched
from nanotron_ext.checkpoint import (
    Advance,
    CheckpointError,
    CheckpointReader,
    checkpoint_folder,
    finish_checkpoint,
    save_shard,
    versions,
)
from nanotron_ext.data.start import RUN_START, DataStart
from nanotron_ext.engine import dist, node_name
from nanotron_ext.ledger import Samples
from nanotron_ext.retention import prune_checkpoints
from nanotron_ext.storage import Uploader, not_uploaded
from nanotron_ext.train.exchange import keeps_files
from nanotron_ext.train.step import TrainState

Announce = Callable[[str, Work], None]  # what the caller is going to wait for, and how far it is


class CheckpointWriter:
    """Writes checkpoints behind the training's back.

    `start` copies this rank's state to host memory and returns; a thread writes it. When no rank is writing any more,
    `commit` makes the checkpoint visible: until then it is `<step>.tmp`, and the one before stays the newest. At most
    one checkpoint is under way. Whatever makes the caller wait for disks is announced first.

    Every method raises CheckpointError when the disk fails; the checkpoint before stays the newest.
    """

    def __init__(
        self, state: TrainState, skipped: Sequence[Samples], announce: Announce, data_start: DataStart = RUN_START
    ) -> None:
        """`skipped` are the ranges of samples that the run leaves out; at `data_start` the recipe's data begins."""
        self._state, self._skipped, self._announce = state, skipped, announce
        self._data_start = data_start
        self._work = Work()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[dict[str, Any]] | None = None
        self._manifest: dict[str, Any] = {}
        uploads = state.recipe.checkpoints.remote_path is not None and torch.distributed.get_rank() == 0
        self._uploader = Uploader(state.recipe) if uploads else None

    def start(self, step: int, data: dict[str, Any], first: Callable[[], None] | None = None) -> None:
        """Begin to write `<run>/checkpoints/<step>`. `data` is what each source has given so far; `first` is what the
        thread does before, and the checkpoint is not visible without it."""
        self.commit()
        recipe, context = self._state.recipe, self._state.context
        self._work = Work()
        self._manifest = {
            "step": step,
            "recipe_hash": recipe.hash(),
            "recipe": recipe.to_dict(),
            "model_config": recipe.architecture.model_dump(mode="json"),
            "dtype": recipe.model.dtype,
            "tokenizer": recipe.tokenizer.tokenizer_name_or_path,
            "data": data,
            "data_start": dataclasses.asdict(self._data_start),
            "skipped_samples": self._skipped,
            "versions": versions(),
        }
        self._announce(self._activity, self._work)
        if keeps_files(recipe):
            with self._disk_errors():
                # What a killed attempt left, perhaps in another layout, must not be mixed with ours.
                shutil.rmtree(self._temporary, ignore_errors=True)
                self._temporary.mkdir(parents=True)
        torch.distributed.barrier()
        dp_rank = dist.get_rank(context.dp_pg)
        mine: dict[str, list[Any]] = {}
        if self._state.optimizer.sharded or dp_rank == 0:
            mine = {kind: list(_copied(self._state.optimizer.state(kind))) for kind in recipe.optimizer.state_kinds}
        self._work.total_bytes = sum(tensor.nbytes for parts in mine.values() for _, _, tensor in parts)
        rank_name = f"pp{dist.get_rank(context.pp_pg)}-tp{dist.get_rank(context.tp_pg)}-dp{dp_rank}"
        self._writing = self._thread.submit(_write, self._temporary, rank_name, mine, self._work.advance, first)

    @property
    def is_busy(self) -> bool:
        """Whether this rank is still writing."""
        if self._writing is None or not self._writing.done():
            return self._writing is not None
        self._written_files()
        return False

    def commit(self) -> None:
        """Wait for the write and make the checkpoint visible. To be called on all ranks."""
        if self._writing is None:
            return
        self._announce(self._activity, self._work)
        files: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(files, self._written_files())
        self._writing = None
        if keeps_files(self._state.recipe):
            final = checkpoint_folder(self._state.recipe.run_folder, self._manifest["step"])
            with self._disk_errors():
                all_files = {name: description for of_rank in files for name, description in of_rank.items()}
                finish_checkpoint(self._temporary, final, self._manifest, all_files, self._work.advance)
                if self._uploader is not None:
                    self._uploader.upload_all()
                self._prune(self._work)
        torch.distributed.barrier()  # no rank goes on to what the watchdog gives less time

    def finish_uploads(self) -> None:
        """Wait for the copies in object storage. On all ranks: Slurm ends a job some time after its first ended."""
        if self._state.recipe.checkpoints.remote_path is None:
            return
        self._announce("uploading", Work() if self._uploader is None else self._uploader.work)
        if self._uploader is not None:
            self._uploader.finish()
            with self._disk_errors():
                self._prune(self._uploader.work)
        torch.distributed.barrier()

    def _prune(self, work: Work) -> None:
        section, run_folder = self._state.recipe.checkpoints, self._state.recipe.run_folder
        needed = not_uploaded(run_folder) if self._uploader is not None else []
        prune_checkpoints(run_folder, section.keep_last, section.keep_every_steps, needed, work.advance)
        if self._uploader is not None and not section.keep_local:
            prune_checkpoints(run_folder, keep_last=1, keep_every_steps=None, needed=needed, advance=work.advance)

    def _written_files(self) -> dict[str, Any]:
        """Waits for this rank's write; what the manifest will say of its files."""
        assert self._writing is not None
        with self._disk_errors():
            return self._writing.result()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it was, the run must not go on without checkpoints
            raise CheckpointError(
                f"Rank {torch.distributed.get_rank()} could not write {self._temporary}: {error}. Free some space or "
                f"repair the disk, and start the run again: it goes on from the checkpoint before."
            ) from error

    @property
    def _activity(self) -> str:
        return f"writing checkpoint {self._manifest['step']}"

    @property
    def _temporary(self) -> Path:
        return checkpoint_folder(self._state.recipe.run_folder, self._manifest["step"]).with_suffix(".tmp")


def _copied(parts: Iterator[tuple[Any, int, torch.Tensor]]) -> Iterator[tuple[Any, int, torch.Tensor]]:
    for slot, start, tensor in parts:
        yield slot, start, tensor.detach().to("cpu", copy=True)


def _write(
    folder: Path,
    rank_name: str,
    parts_by_kind: dict[str, list[Any]],
    advance: Advance,
    first: Callable[[], None] | None,
) -> dict[str, Any]:
    """Write and flush one rank's files; what the manifest will say of them."""
    if first is not None:
        first()
    files: dict[str, Any] = {}
    for kind in list(parts_by_kind):
        files |= save_shard(folder, kind, rank_name, iter(parts_by_kind.pop(kind)), advance)  # and free the copy
    return files


def verify_together(reader: CheckpointReader, is_shared: bool, advance: Advance) -> list[str]:
    """Compare all files with their checksums, each rank a part of them; what is wrong, the same list on every rank.

    Unless `is_shared`, each machine has files of its own, and its ranks compare all of them.
    """
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    machines: list[int] = [0] * world_size  # of each rank, the first rank of its machine
    torch.distributed.all_gather_object(machines, 0 if is_shared else rank - int(os.environ["LOCAL_RANK"]))
    first = machines[rank]
    mine = reader.damaged_files(rank - first, machines.count(first), advance)
    if not is_shared:
        mine = [f"{problem} on {node_name()}" for problem in mine]
    problems: list[list[str]] = [[] for _ in range(world_size)]
    torch.distributed.all_gather_object(problems, mine)
    return [problem for of_rank in problems for problem in of_rank]


def load_checkpoint(state: TrainState, reader: CheckpointReader, advance: Advance = unwatched) -> None:
    """Fill masters, optimizer state and model from a checkpoint of any layout; `advance` is told of the bytes read.

    Raises:
        CheckpointError: when it does not hold all of this model and its optimizer's state.
    """
    for kind in state.recipe.optimizer.state_kinds:
        _load_kind(state, reader, kind, advance)
    state.optimizer.set_steps_taken(reader.step)
    state.optimizer.masters_to_model()


def load_weights(state: TrainState, reader: CheckpointReader, advance: Advance = unwatched) -> None:
    """Fill the model and its masters; Adam starts afresh. `advance` is told of the bytes read.

    Raises:
        CheckpointError: when the checkpoint is of another architecture.
    """
    _load_kind(state, reader, "master", advance)
    state.optimizer.masters_to_model()


def _load_kind(state: TrainState, reader: CheckpointReader, kind: str, advance: Advance) -> None:
    for slot, start, local in state.optimizer.state(kind):
        entry = slot.entry
        whole = reader.read(kind, entry.name, expected_shape=entry.shape)
        local.copy_(entry.cut(whole).flatten()[start : start + local.numel()])
        advance(whole.nbytes)
