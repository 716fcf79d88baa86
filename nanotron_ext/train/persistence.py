"""The run's state on disk: every rank writes its share of a checkpoint, and reads what it holds of one."""

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from foundation.progress import Work, unwatched
from nanotron_ext.checkpoint import (
    CheckpointError,
    CheckpointReader,
    Part,
    checkpoint_folder,
    finish_checkpoint,
    index_of,
    merged,
    save_shard,
    versions,
)
from nanotron_ext.data.start import RUN_START, DataStart
from nanotron_ext.engine import ParallelContext, dist, node_name
from nanotron_ext.ledger import Samples
from nanotron_ext.model.naming import GlobalParameter
from nanotron_ext.placement import Placement, owner_of
from nanotron_ext.reading import HELD_SHARE, Advance, FileReads, reads_by_file
from nanotron_ext.retention import prune_checkpoints
from nanotron_ext.storage import Uploader, not_uploaded
from nanotron_ext.train.exchange import keeps_files
from nanotron_ext.train.host_copy import HostCopy
from nanotron_ext.train.optimizer import Optimizer
from nanotron_ext.train.step import TrainState

Announce = Callable[[str, Work], None]  # what the caller is going to wait for, and how far it is
OnSaved = Callable[[int, dict[str, float]], None]  # a step whose checkpoint is visible, and the seconds of its parts


class CheckpointWriter:
    """Writes checkpoints behind the training's back.

    `start` copies this rank's share to host memory and returns; threads write it. When no rank is writing any more,
    `commit` makes the checkpoint visible: until then it is `<step>.tmp`, and the one before stays the newest. At most
    one checkpoint is under way. Whatever makes the caller wait for disks is announced first.

    Every method raises CheckpointError when the disk fails; the checkpoint before stays the newest.
    """

    def __init__(
        self,
        state: TrainState,
        skipped: Sequence[Samples],
        announce: Announce,
        data_start: DataStart = RUN_START,
        spared: int = 0,
        on_saved: OnSaved | None = None,
    ) -> None:
        """`skipped` are the ranges of samples that the run leaves out; at `data_start` the recipe's data begins; up to
        step `spared` nothing is pruned."""
        self._state, self._skipped, self._announce = state, skipped, announce
        self._data_start, self._spared = data_start, spared
        self._on_saved, self._versions = on_saved, versions()
        self._began = self._copied_at = 0.0
        self._work = Work()
        # Files are hashed and flushed side by side, while the next kind of state is still being copied.
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="checkpoint")
        self._writing: list[Future[dict[str, Any]]] = []
        self._copy = HostCopy(state.device, state.optimizer.adam)
        self._manifest: dict[str, Any] = {}
        self._is_under_way = False
        uploads = state.recipe.checkpoints.remote_path is not None and torch.distributed.get_rank() == 0
        self._uploader = Uploader(state.recipe) if uploads else None

    def start(self, step: int, data: dict[str, Any], first: Callable[[], None] | None = None) -> None:
        """Begin to write `<run>/checkpoints/<step>`. `data` is what each source has given so far; `first` is what a
        thread does beside, and the checkpoint is not visible without it."""
        self.commit()
        self._began = time.monotonic()
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
            "versions": self._versions,
        }
        self._is_under_way = True
        self._announce(self._activity, self._work)
        if keeps_files(recipe):
            with self._disk_errors():
                # What a killed attempt left, perhaps in another layout, must not be mixed with ours.
                shutil.rmtree(self._temporary, ignore_errors=True)
                self._temporary.mkdir(parents=True)
        torch.distributed.barrier()
        if first is not None:
            self._writing.append(self._threads.submit(_nothing_written, first))
        for kind in recipe.optimizer.state_kinds:
            if parts := self._copied(kind):
                self._work.total_bytes += sum(part[-1].nbytes for part in parts)
                arguments = self._temporary, kind, shard_name(context), parts, self._copy.wait, self._work.advance
                self._writing.append(self._threads.submit(_write, *arguments))
        self._copied_at = time.monotonic()

    def _copied(self, kind: str) -> list[Part]:
        """This rank's share of one kind of state, in host memory.

        Without ZeRO-1 all replicas hold the same, and each writes its part of it; on disks of single machines the
        first writes all, so that one machine has the whole checkpoint.
        """
        optimizer, context, recipe = self._state.optimizer, self._state.context, self._state.recipe
        parts = state_parts(optimizer, kind)
        if not optimizer.sharded:
            replica, replicas = dist.get_rank(context.dp_pg), context.dp_pg.size()
            if recipe.checkpoints.checkpoints_path_is_shared_file_system:
                parts = list(_share(parts, replica, replicas))
            elif replica > 0:
                parts = []
        copies = self._copy.take([part[-1] for part in parts])
        return [(name, place, start, copy) for (name, place, start, _), copy in zip(parts, copies, strict=True)]

    @property
    def is_busy(self) -> bool:
        """Whether this rank is still writing."""
        if any(not writing.done() for writing in self._writing):
            return True
        self._written()
        return False

    def commit(self) -> None:
        """Wait for the write and make the checkpoint visible. To be called on all ranks."""
        if not self._is_under_way:
            return
        self._announce(self._activity, self._work)
        written: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(written, self._written())
        self._writing.clear()
        committing = time.monotonic()
        if keeps_files(self._state.recipe):
            final = checkpoint_folder(self._state.recipe.run_folder, self._manifest["step"])
            with self._disk_errors():
                content = {**self._manifest, "index": merged(of_rank["index"] for of_rank in written)}
                files = {name: description for of_rank in written for name, description in of_rank["files"].items()}
                finish_checkpoint(self._temporary, final, content, files, self._work.advance)
                if self._uploader is not None:
                    self._uploader.upload_all()
                self._prune(self._work)
        self._is_under_way = False
        torch.distributed.barrier()  # no rank goes on to what the watchdog gives less time
        if self._on_saved is not None:
            written_seconds = max(of_rank["seconds"] for of_rank in written)
            copy, commit = self._copied_at - self._began, time.monotonic() - committing
            seconds = {"copy": copy, "write": max(written_seconds - copy, 0.0), "commit": commit}
            self._on_saved(self._manifest["step"], {part: round(value, 3) for part, value in seconds.items()})

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
        prune_checkpoints(run_folder, section.keep_last, section.keep_every_steps, needed, work.advance, self._spared)
        if self._uploader is not None and not section.keep_local:
            prune_checkpoints(run_folder, keep_last=1, keep_every_steps=None, needed=needed, advance=work.advance)

    def _written(self) -> dict[str, Any]:
        """Waits for this rank's write; what the manifest will say of its files, as `files` and `index`, and the
        `seconds` from the beginning of the save to the end of the last one."""
        with self._disk_errors():
            written = [writing.result() for writing in self._writing]
        files = {name: described for of_kind in written for name, described in of_kind["files"].items()}
        ended = max((of_kind["ended"] for of_kind in written), default=self._copied_at)
        index = merged(of_kind["index"] for of_kind in written)
        return {"files": files, "index": index, "seconds": ended - self._began}

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it was, the run must not go on without checkpoints
            raise CheckpointError(
                f"Rank {torch.distributed.get_rank()} could not write {self._place}: {error}. Free some space or "
                f"repair the disk, and start the run again: it goes on from the checkpoint before."
            ) from error

    @property
    def _activity(self) -> str:
        return f"writing checkpoint {self._manifest['step']}"

    @property
    def _place(self) -> Path:
        return self._temporary if self._manifest else self._state.recipe.run_folder / "checkpoints"

    @property
    def _temporary(self) -> Path:
        return checkpoint_folder(self._state.recipe.run_folder, self._manifest["step"]).with_suffix(".tmp")


def _write(
    folder: Path, kind: str, shard: str, parts: list[Part], wait: Callable[[], None], advance: Advance
) -> dict[str, Any]:
    """Write and flush one of a rank's files; what the manifest will say of it. All kinds have the same index."""
    wait()
    files = save_shard(folder, kind, shard, parts, advance)
    return {"files": files, "index": index_of(shard, parts), "ended": time.monotonic()}


def _nothing_written(action: Callable[[], None]) -> dict[str, Any]:
    action()
    return {"files": {}, "index": merged([]), "ended": time.monotonic()}


def shard_name(context: ParallelContext) -> str:
    """Of this rank's files."""
    stage, tp_rank = dist.get_rank(context.pp_pg), dist.get_rank(context.tp_pg)
    return f"pp{stage}-tp{tp_rank}-dp{dist.get_rank(context.dp_pg)}"


def state_parts(optimizer: Optimizer, kind: str) -> list[Part]:
    """What this rank holds of one kind of state; the tensors are views of it."""
    return [(slot.entry.name, _placement(slot.entry), start, tensor) for slot, start, tensor in optimizer.state(kind)]


def _placement(entry: GlobalParameter) -> Placement:
    pieces = tuple((piece.local, piece.whole) for piece in entry.pieces)
    return Placement(entry.shape, tuple(entry.parameter.shape), pieces)


def _share(parts: list[Part], number: int, shares: int) -> Iterator[Part]:
    """The `number`-th of equal shares of the parts laid end to end."""
    total, offset = sum(part[-1].numel() for part in parts), 0
    begin, end = total * number // shares, total * (number + 1) // shares
    for name, placement, start, tensor in parts:
        first, last = max(begin - offset, 0), min(end - offset, tensor.numel())
        if first < last:
            yield name, placement, start + first, tensor[first:last]
        offset += tensor.numel()


def load_checkpoint(
    state: TrainState, reader: CheckpointReader, is_shared: bool = True, advance: Advance = unwatched
) -> None:
    """Fill masters, optimizer state and model from a checkpoint of any layout; to be called on all ranks.

    Each rank reads what it holds. All files are compared with their checksums, each by one rank, or, unless
    `is_shared`, by one of every machine. `advance` is told of the bytes read.

    Raises:
        CheckpointError: on all ranks, when the checkpoint is damaged or does not hold all of the model and its
            optimizer's state. What was loaded until then is worth nothing.
    """
    _load(state, reader, state.recipe.optimizer.state_kinds, is_shared, advance)
    state.optimizer.set_steps_taken(reader.step)
    state.optimizer.masters_to_model()


def load_weights(
    state: TrainState, reader: CheckpointReader, is_shared: bool = True, advance: Advance = unwatched
) -> None:
    """Fill the model and its masters as `load_checkpoint` does; Adam starts afresh.

    Raises:
        CheckpointError: on all ranks, when the checkpoint is damaged or of another architecture.
    """
    _load(state, reader, ("master",), is_shared, advance)
    state.optimizer.masters_to_model()


def _load(state: TrainState, reader: CheckpointReader, kinds: Sequence[str], is_shared: bool, advance: Advance) -> None:
    reads, near, problems = reads_by_file(), owner_of(shard_name(state.context)), []
    try:
        for kind in kinds:
            for name, placement, start, target in state_parts(state.optimizer, kind):
                reader.find(kind, name, placement, start, target, near, reads)
    except CheckpointError as error:
        problems.append(str(error))
    _refuse(problems)
    compared = files_to_compare(reader, reads, is_shared)
    for file in sorted({*reads, *compared}):
        if problem := reader.fill(file, reads[file], file in compared, advance):
            problems.append(problem if is_shared else f"{problem} on {node_name()}")
    _refuse(problems)


def _refuse(problems: list[str]) -> None:
    """Raise CheckpointError on all ranks with what any of them has found."""
    everywhere: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everywhere, problems)
    if found := dict.fromkeys(problem for of_rank in everywhere for problem in of_rank):
        raise CheckpointError("; ".join(found))


def files_to_compare(reader: CheckpointReader, reads: dict[str, FileReads], is_shared: bool) -> set[str]:
    """The files of which this rank compares the checksums; of each file, a rank that reads nearly all of it anyway.

    To be called on all ranks.
    """
    rank, files = torch.distributed.get_rank(), reader.files
    held = sum(
        1 << number
        for number, file in enumerate(files)
        if file in reads and reads[file].elements >= HELD_SHARE * reader.elements(file)
    )
    machine = 0 if is_shared else rank - int(os.environ["LOCAL_RANK"])  # its first rank
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, (machine, held))
    neighbours = {other: holds for other, (its_machine, holds) in enumerate(everywhere) if its_machine == machine}
    mine = set()
    for number, file in enumerate(files):
        holders = [other for other, holds in neighbours.items() if holds >> number & 1] or list(neighbours)
        if holders[number % len(holders)] == rank:
            mine.add(file)
    return mine
