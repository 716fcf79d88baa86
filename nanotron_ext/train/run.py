"""A training run from start-up checks to the last checkpoint."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

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
from nanotron_ext.checkpoint import CheckpointError, list_checkpoints
from nanotron_ext.data.loader import MixtureLoader, StepBatch
from nanotron_ext.engine import Launch, ParallelContext, dist, initialize_distributed
from nanotron_ext.flops import step_flops
from nanotron_ext.model.build import DTYPES
from nanotron_ext.retention import announce_spared
from nanotron_ext.train import flight_recorder, startup
from nanotron_ext.train.agreement import agree, fall_back, looks_for_checkpoints
from nanotron_ext.train.console import Console
from nanotron_ext.train.exchange import complete_checkpoints
from nanotron_ext.train.garbage import GarbageCollection
from nanotron_ext.train.heartbeat import Heartbeat
from nanotron_ext.train.persistence import CheckpointWriter, load_checkpoint, load_weights
from nanotron_ext.train.replicas import ReplicaError
from nanotron_ext.train.spikes import SpikeDetector, SpikeError
from nanotron_ext.train.step import StepResult, TrainState
from nanotron_ext.train.stragglers import StragglerWatch
from nanotron_ext.train.throughput import peak_flops_per_second, squared_document_lengths
from nanotron_ext.train.timings import Stopwatch, Timings, time_of_last_step
from nanotron_ext.train.validation import Validation

logger = logging.getLogger("nanotron_ext.train")


def run(recipe: Recipe, stop: StopSignal | None = None) -> Outcome:
    """Train the recipe's steps, from the newest checkpoint on.

    SIGUSR1 or SIGTERM to any rank ends the run after the step that is under way, with a checkpoint; before the first
    step, without one more. Until the ranks watch each other it ends this process at once, if `stop` says so.

    Raises:
        UserError: a RecipeError, ShardError, CheckpointError, StartupError or TrackingError, before anything is
            written; a NonFiniteError in the middle of a run.
        MachineError: a ReplicaError, when ranks that must hold the same weights do not.
    """
    watch = Stopwatch()
    watch.lap("imports")
    stop = stop or StopSignal()
    parallelism = recipe.parallelism
    with startup.ended_with_others():
        launch, found = _prepare(recipe, watch)
        is_writer = launch.rank == 0
        lock = startup.take_run_folder(recipe) if is_writer else None
        if is_writer:
            outcome.clear(recipe)
            stop.run = recipe
        context = ParallelContext(parallelism.tp, parallelism.pp, parallelism.dp, parallelism.context_parallel_size)
        torch.distributed.barrier()  # all ranks pass the next line at about the same time
    stop.ends_at_once = False  # from here on ranks notice when one of them is gone
    try:
        with Heartbeat(recipe, launch) as heartbeat, GarbageCollection() as garbage:
            try:
                starts_anew = found.checkpoint is None and found.weights is None
                state = TrainState(recipe, context, launch.device, draws=starts_anew)
                watch.lap("build model")
                result = _restore_and_train(state, found, stop, heartbeat, garbage, watch if is_writer else None)
            except (UserError, MachineError) as error:
                heartbeat.waits_for("recording the outcome", Work())
                if is_writer:
                    outcome.write(recipe, _broken_off(recipe, error))
                raise
            heartbeat.waits_for("recording the outcome", Work())
            if is_writer:
                outcome.write(recipe, result)
        if is_writer:
            logger.info(f"{result.outcome.capitalize()} after step {result.step} of {recipe.last_step}.")
        return result
    finally:
        torch.distributed.destroy_process_group()
        if lock is not None:
            lock.close()


def _restore_and_train(
    state: TrainState,
    found: startup.Preflight,
    stop: StopSignal,
    heartbeat: Heartbeat,
    garbage: GarbageCollection,
    watch: Stopwatch | None,
) -> Outcome:
    """The first rank has a `watch`."""
    last_step = state.recipe.last_step
    step_done, found = _restore(state, found, heartbeat)
    if watch is not None:
        watch.lap("load")
    if step_done >= last_step:
        writer = CheckpointWriter(state, found.skipped, heartbeat.waits_for, found.data_start, found.spared)
        writer.finish_uploads()  # what failed before
    elif not _is_stopped(stop, state.device):
        step_done = _train(state, step_done, found, stop, heartbeat, garbage, watch)
    return Outcome("finished" if step_done == last_step else "stopped", step_done)


def _broken_off(recipe: Recipe, error: UserError | MachineError) -> Outcome:
    kind: Literal["failed", "crashed"] = "failed" if isinstance(error, UserError) else "crashed"
    return Outcome(kind, outcome.last_recorded_step(recipe), str(error))


def _is_stopped(stop: StopSignal, device: torch.device) -> bool:
    """Whether any rank was asked to stop. To be called on all ranks."""
    requested = torch.tensor(int(stop.requested), device=device)
    torch.distributed.all_reduce(requested, torch.distributed.ReduceOp.MAX)
    return bool(requested.item())


def _prepare(recipe: Recipe, watch: Stopwatch) -> tuple[Launch, startup.Preflight]:
    """The first rank of each machine looks at the disk, all connect, and agree on what was seen."""
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    is_shared = recipe.checkpoints.checkpoints_path_is_shared_file_system
    found: startup.Preflight | UserError | None = None
    usable = None
    flight_recorder.configure(recipe.run_folder)
    with startup.told_by_rank(rank):
        if is_shared and looks_for_checkpoints():
            found = startup.preflight(recipe, world_size)
        else:
            startup.check_surroundings(recipe, world_size)
        watch.lap("checks")
        launch = initialize_distributed()
        watch.lap("connect")
    if not is_shared:
        usable = complete_checkpoints(recipe, launch.device)
        if looks_for_checkpoints():
            try:
                found = startup.preflight(recipe, world_size, usable)
            except UserError as error:
                found = error
        watch.lap("give each other checkpoints")
    try:
        found = agree(recipe, found, launch.device, usable)
    except UserError:
        torch.distributed.destroy_process_group()
        raise
    watch.lap("compare")
    return launch, found


def _restore(state: TrainState, found: startup.Preflight, heartbeat: Heartbeat) -> tuple[int, startup.Preflight]:
    """Load what the run goes on from; the last step done, and what was found at the checkpoint that was whole."""
    is_shared = state.recipe.checkpoints.checkpoints_path_is_shared_file_system
    while found.checkpoint is not None:
        checkpoint = found.checkpoint
        heartbeat.waits_for(f"loading checkpoint {checkpoint.step}", work := Work())
        try:
            load_checkpoint(state, checkpoint, is_shared, work.advance)
        except CheckpointError as error:
            logger.warning(f"Skipping checkpoint {checkpoint.folder}: {error}.")
        else:
            logger.info(f"Continuing {checkpoint.folder} after step {checkpoint.step}.")
            return checkpoint.step, found
        older = fall_back(state.recipe, found, state.device)
        if older is None:
            raise CheckpointError("No checkpoint is whole (see above). Restore one, or start a run of another name.")
        found = older
    if found.weights is not None:
        heartbeat.waits_for("loading weights", work := Work())
        try:
            load_weights(state, found.weights, is_shared, work.advance)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Restore it, or set checkpoints.load_weights_path to another checkpoint."
            ) from None
        logger.info(f"Starting from the weights of {found.weights.folder}.")
    return 0, found


def _train(
    state: TrainState,
    step_done: int,
    found: startup.Preflight,
    stop: StopSignal,
    heartbeat: Heartbeat,
    garbage: GarbageCollection,
    watch: Stopwatch | None,
) -> int:
    """Train up to the last step or a stop request; returns the last step done. The first rank has a `watch`."""
    recipe, context = state.recipe, state.context
    heartbeat.progress(step_done, "preparing")
    loader = MixtureLoader(recipe, context.replica, context.replicas, found.skipped, found.data_start)
    validation = Validation(recipe, context.replica)
    journal = Journal(state, step_done, found, watch) if watch is not None else None
    peak = peak_flops_per_second(state.device, DTYPES[recipe.model.dtype])
    writer = CheckpointWriter(
        state,
        found.skipped,
        heartbeat.waits_for,
        found.data_start,
        found.spared,
        on_saved=journal.saved if journal else None,
    )
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
            heartbeat.waits_for("reporting a spike", Work())
            if recipe.spikes.action == "stop":
                writer.commit()  # what is being written is the checkpoint to go back to
            _report_spike(state, batch, spike)
        if "data" in extra:  # after the record: a checkpoint's step always has its row
            with _finishing_the_save(writer):
                state.replicas.compare(batch.step)
            writer.start(batch.step, extra["data"], journal.sync if journal is not None else None)
        if result.stop_requested:
            break
        garbage.after_step(batch.step)
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

    def __init__(self, state: TrainState, step_done: int, found: startup.Preflight, watch: Stopwatch) -> None:
        self.recipe, self.data_start, self._watch = state.recipe, found.data_start, watch
        self.timings = Timings(self.recipe, time_of_last_step(self.recipe.run_folder))
        announce_spared(self.recipe, found.spared)  # before the recipe that it is told from is replaced
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
        self._first_step = self._step = step_done + 1
        watch.lap("prepare")
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
        self._step = step
        if step == self._first_step:
            self._watch.lap("first step")
            self._tell(self.timings.start(step, self._watch.seconds))

    def saved(self, step: int, seconds: dict[str, float]) -> None:
        """The checkpoint of `step` is visible; see CheckpointWriter."""
        self._tell(self.timings.save(step, seconds))

    def _tell(self, timing: dict[str, Any]) -> None:
        parts = timing["seconds"]
        total = sum(parts.values())
        named = ", ".join(f"{part} {value:.1f}" for part, value in parts.items())
        logger.info(f"The {timing['event']} took {total:.1f} s: {named}.")
        self.wandb.log({"step": self._step, f"{timing['event']}_seconds": {**parts, "total": total}})

    def sync(self) -> None:
        """Have the disk hold all rows, so that a checkpoint never outlives the rows in front of it."""
        for log in self._logs:
            log.sync()

    def close(self) -> None:
        for log in self._logs:
            log.close()
        self.timings.close()
        self.wandb.close()
