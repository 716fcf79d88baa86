"""A training run from start-up checks to the last checkpoint."""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from foundation import outcome
from foundation.errors import MachineError, UserError
from foundation.journal import METRICS_FILE, SAMPLES_FILE, StepLog
from foundation.outcome import Outcome, StopSignal
from foundation.progress import Work
from foundation.recipe import Recipe
from foundation.shards.remote import DOWNLOADS
from foundation.wandb_run import Wandb
from nanotron_ext import ledger
from nanotron_ext.checkpoint import CheckpointError, CheckpointReader, list_checkpoints
from nanotron_ext.data.loader import MixtureLoader, StepBatch
from nanotron_ext.engine import Launch, ParallelContext, dist, initialize_distributed
from nanotron_ext.flops import step_flops
from nanotron_ext.model.build import DTYPES
from nanotron_ext.train import startup
from nanotron_ext.train.agreement import agree, newest_of_all
from nanotron_ext.train.console import Console
from nanotron_ext.train.exchange import complete_checkpoints
from nanotron_ext.train.heartbeat import Heartbeat
from nanotron_ext.train.persistence import CheckpointWriter, load_checkpoint, load_weights, verify_together
from nanotron_ext.train.replicas import ReplicaError
from nanotron_ext.train.spikes import SpikeDetector, SpikeError
from nanotron_ext.train.step import StepResult, TrainState
from nanotron_ext.train.stragglers import StragglerWatch
from nanotron_ext.train.throughput import peak_flops_per_second, squared_document_lengths
from nanotron_ext.train.validation import Validation

logger = logging.getLogger("nanotron_ext.train")


def run(recipe: Recipe) -> Outcome:
    """Train the recipe's steps, from the newest checkpoint on.

    SIGUSR1 or SIGTERM to any rank ends the run after the step that is under way, with a checkpoint.

    Raises:
        UserError: a RecipeError, ShardError, CheckpointError, StartupError or TrackingError, before anything is
            written; a NonFiniteError in the middle of a run.
        MachineError: a ReplicaError, when ranks that must hold the same weights do not.
    """
    launch, found = _prepare(recipe)
    stop = StopSignal()
    parallelism = recipe.parallelism
    is_writer = launch.rank == 0
    lock = startup.take_run_folder(recipe) if is_writer else None
    if is_writer:
        outcome.clear(recipe)
    context = ParallelContext(parallelism.tp, parallelism.pp, parallelism.dp, parallelism.context_parallel_size)
    try:
        with Heartbeat(recipe, launch) as heartbeat:
            state = TrainState(recipe, context, launch.device)
            checkpoint = _restore(state, found, heartbeat)
            step_done = checkpoint.step if checkpoint is not None else 0
            if checkpoint is not None and checkpoint is not found.checkpoints[0]:
                found = startup.going_on_from(recipe, found, checkpoint)
            if step_done < recipe.last_step:
                step_done = _train(state, step_done, found, stop, heartbeat, is_writer)
            else:
                CheckpointWriter(
                    state, found.skipped, heartbeat.waits_for, found.data_start
                ).finish_uploads()  # what failed before
        result = Outcome("finished" if step_done == recipe.last_step else "stopped", step_done)
        if is_writer:
            outcome.write(recipe, result)
            logger.info(f"{result.outcome.capitalize()} after step {step_done} of {recipe.last_step}.")
        return result
    except (UserError, MachineError) as error:
        if is_writer:
            kind: Any = "failed" if isinstance(error, UserError) else "crashed"
            outcome.write(recipe, Outcome(kind, outcome.last_recorded_step(recipe), str(error)))
        raise
    finally:
        torch.distributed.destroy_process_group()
        if lock is not None:
            lock.close()


def _prepare(recipe: Recipe) -> tuple[Launch, startup.Preflight]:
    """Each rank looks at the disk, they connect, and agree on what they have seen."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    found: startup.Preflight | UserError
    if recipe.checkpoints.checkpoints_path_is_shared_file_system:
        with startup.told_by_rank(rank):
            found = startup.preflight(recipe, world_size)
        launch = initialize_distributed()
    else:
        with startup.told_by_rank(rank):
            startup.check_world_size(recipe, world_size)
            startup.check_not_running(recipe)
        launch = initialize_distributed()
        found = _preflight_on_own_disks(recipe, launch)
    try:
        return launch, agree(recipe, found, launch.device)
    except UserError:
        torch.distributed.destroy_process_group()
        raise


def _preflight_on_own_disks(recipe: Recipe, launch: Launch) -> startup.Preflight | UserError:
    """With the checkpoints that all machines have in full."""
    completed = complete_checkpoints(recipe, launch.device)
    try:
        found = startup.preflight(recipe, launch.world_size)
    except UserError as error:
        return error
    usable = [checkpoint for checkpoint in found.checkpoints if checkpoint.folder in completed]
    return dataclasses.replace(found, checkpoints=usable)


def _restore(state: TrainState, found: startup.Preflight, heartbeat: Heartbeat) -> CheckpointReader | None:
    """Load what the run goes on from; returns the checkpoint that it continues."""
    is_shared = state.recipe.checkpoints.checkpoints_path_is_shared_file_system
    candidates = found.checkpoints
    while (checkpoint := newest_of_all(candidates)) is not None:
        heartbeat.waits_for(f"comparing checkpoint {checkpoint.step} with its checksums", work := Work())
        if damaged := verify_together(checkpoint, is_shared, work.advance):
            logger.warning(f"Skipping checkpoint {checkpoint.folder}: {'; '.join(damaged)}.")
            candidates = [older for older in candidates if older.step < checkpoint.step]
            continue
        heartbeat.waits_for(f"loading checkpoint {checkpoint.step}", work := Work())
        load_checkpoint(state, checkpoint, work.advance)
        logger.info(f"Continuing {checkpoint.folder} after step {checkpoint.step}.")
        return checkpoint
    if found.checkpoints:
        raise CheckpointError("No checkpoint is whole (see above). Restore one, or start a run of another name.")
    if found.weights is not None:
        heartbeat.waits_for("comparing the weights with their checksums", work := Work())
        if damaged := verify_together(found.weights, is_shared, work.advance):
            raise CheckpointError(
                f"{'; '.join(damaged)}. Restore it, or set checkpoints.load_weights_path to another checkpoint."
            )
        heartbeat.waits_for("loading weights", work := Work())
        load_weights(state, found.weights, work.advance)
        logger.info(f"Starting from the weights of {found.weights.folder}.")
    return None


def _train(
    state: TrainState,
    step_done: int,
    found: startup.Preflight,
    stop: StopSignal,
    heartbeat: Heartbeat,
    is_writer: bool,
) -> int:
    """Train up to the last step or a stop request; returns the last step done."""
    recipe, context = state.recipe, state.context
    heartbeat.progress(step_done, "preparing")
    loader = MixtureLoader(recipe, context.replica, context.replicas, found.skipped, found.data_start)
    validation = Validation(recipe, context.replica)
    journal = Journal(state, step_done, found) if is_writer else None
    peak = peak_flops_per_second(state.device, DTYPES[recipe.model.dtype])
    writer = CheckpointWriter(state, found.skipped, heartbeat.waits_for, found.data_start)
    spikes = SpikeDetector(recipe.spikes)
    stragglers = StragglerWatch.over(state.context)
    mark = time.perf_counter()
    for batch, data_wait_seconds in loader.iterate(step_done + 1, recipe.last_step):
        heartbeat.progress(batch.step, "training")
        with _finishing_the_save(writer):
            result = state.train_step(batch, stop.requested, writer.is_busy, data_wait_seconds)
        step_done = batch.step
        seconds = time.perf_counter() - mark
        if not result.is_saving:
            writer.commit()
        extra: dict[str, Any] = {"data_wait_seconds": data_wait_seconds, "mfu": _flops(state, batch) / seconds / peak}
        slowest, alarm = stragglers.observe(result.work_seconds)
        extra |= {"slowest_rank": slowest.rank, "slowest_rank_seconds_behind": slowest.seconds_behind}
        if alarm is not None:
            logger.warning(alarm)
        if _is_due(recipe, batch.step, recipe.tokens.val_check_interval):
            heartbeat.progress(batch.step, "preparing validation")
            evaluating = partial(heartbeat.progress, batch.step, "validation")
            extra["validation_bits_per_byte"] = validation.bits_per_byte(state, evaluating)
        heartbeat.progress(batch.step, "bookkeeping")
        if result.stop_requested or _is_due(recipe, batch.step, recipe.checkpoints.checkpoint_interval):
            extra["data"] = startup.data_state(loader, batch.step)
        samples = _global_samples(state, loader, batch.step) if recipe.logging.log_samples else []
        if journal is not None:
            heartbeat.waits_for("recording the step", Work())
            journal.record(batch.step, result, seconds, extra, samples)
            heartbeat.progress(batch.step, "bookkeeping")
        if (spike := spikes.observe(result.loss)) is not None:
            if recipe.spikes.action == "stop":
                writer.commit()  # what is being written is the checkpoint to go back to
            _report_spike(state, batch, spike)
        if "data" in extra:  # after the record: a checkpoint's step always has its row
            with _finishing_the_save(writer):
                state.replicas.compare(batch.step)
            writer.start(batch.step, extra["data"], journal.sync if journal is not None else None)
        if result.stop_requested:
            break
        heartbeat.waits_for("reading data", DOWNLOADS)
        mark = time.perf_counter()
    state.optimizer.wait_for_weights()  # nothing is under way when the process groups are taken down
    writer.commit()
    writer.finish_uploads()
    if journal is not None:
        heartbeat.waits_for("closing metrics and wandb", Work())
        journal.close()
    return step_done


@contextlib.contextmanager
def _finishing_the_save(writer: CheckpointWriter) -> Iterator[None]:
    """Before a ReplicaError ends the run: what is being written was compared, and is what to go back to."""
    try:
        yield
    except ReplicaError:
        writer.commit()
        raise


def _report_spike(state: TrainState, batch: StepBatch, spike: str) -> None:
    """Warn; raises SpikeError when the recipe says so, alike on all ranks since all have the same loss."""
    (first, last), run_folder = state.global_samples(batch), state.recipe.run_folder
    message = f"Step {batch.step}: {spike}. Its samples are {first} to {last} of the run."
    if state.recipe.spikes.action == "warn":
        logger.warning(message)
        return
    before = [path.name for path in list_checkpoints(run_folder)]
    raise SpikeError(
        f"{message} Look at them; to go on without them, run `smollm3 rewind {run_folder} --to-step "
        f"{before[-1] if before else 'S'} --skip-samples {first}-{last}` and start again, or to go on as it is, set "
        f"spikes.action to warn."
    )


def _is_due(recipe: Recipe, step: int, interval: int | None) -> bool:
    return interval is not None and (step % interval == 0 or step == recipe.last_step)


def _global_samples(state: TrainState, loader: MixtureLoader, step: int) -> list[tuple[str, int]]:
    """Source and window number of every sample of the step, in the order of the global batch."""
    context = state.context
    parts: list[list[tuple[str, int]]] = [[] for _ in range(context.dp_pg.size())]
    dist.all_gather_object(parts, loader.sample_ids(step), group=context.dp_pg)
    return [sample for part in parts[:: context.cp] for sample in part]


def _flops(state: TrainState, batch: StepBatch) -> float:
    """FLOPs of the global step, taking this replica's document lengths for all."""
    recipe = state.recipe
    squares = squared_document_lengths(batch) * recipe.parallelism.dp
    return step_flops(recipe.architecture, recipe.tokens_per_step, squares)


class Journal:
    """The first rank's account of the run: metrics.jsonl, console and wandb."""

    def __init__(self, state: TrainState, step_done: int, found: startup.Preflight) -> None:
        self.recipe, self.data_start = state.recipe, found.data_start
        startup.save_recipe(self.recipe)
        if found.changes:
            ledger.record(self.recipe.run_folder, "recipe changed", step=step_done, changes=found.changes)
        self.metrics = StepLog(self.recipe.run_folder / METRICS_FILE, step_done)
        self.samples = None
        if self.recipe.logging.log_samples:
            self.samples = StepLog(self.recipe.run_folder / SAMPLES_FILE, step_done)
        self._logs = [log for log in (self.metrics, self.samples) if log is not None]
        self.console = Console(self.recipe)
        self.wandb = Wandb(self.recipe, found.tracking_mode, step_done)
        logger.info(
            f"{self.recipe.run_folder}: steps {step_done + 1} to {self.recipe.last_step}, "
            f"{self.recipe.architecture.num_parameters():,} parameters, {self.recipe.parallelism}, "
            f"{self.recipe.tokens_per_step:,} tokens per step, wandb {found.tracking_mode}."
        )

    def record(
        self, step: int, result: StepResult, seconds: float, extra: dict[str, Any], samples: list[tuple[str, int]]
    ) -> None:
        row = {
            "step": step,
            "loss": result.loss,
            "lr": result.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens": self.data_start.tokens_after(step, self.recipe),
            "tokens_per_second": self.recipe.tokens_per_step / seconds,
            **extra,
        }
        if self.samples is not None:
            self.samples.write({"step": step, "samples": samples})
        self.metrics.write(row)
        self.wandb.log(row)
        self.console.show(row, seconds)

    def sync(self) -> None:
        """Have the disk hold all rows, so that a checkpoint never outlives the rows in front of it."""
        for log in self._logs:
            log.sync()

    def close(self) -> None:
        for log in self._logs:
            log.close()
        self.wandb.close()
