"""One training step on this rank: forward and backward through nanotron's pipeline, then the optimizer."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from foundation.errors import UserError
from foundation.recipe import Recipe
from nanotron_ext.data.loader import MicroBatch, StepBatch
from nanotron_ext.engine import ParallelContext, TensorPointer, clear_pipeline_queues, dist, pipeline_engine
from nanotron_ext.model.build import build_model
from nanotron_ext.model.documents import Documents
from nanotron_ext.model.transfer import to_device
from nanotron_ext.train.optimizer import Optimizer
from nanotron_ext.train.replicas import ReplicaCheck
from nanotron_ext.train.schedule import learning_rate
from nanotron_ext.train.stragglers import WorkTimer


class NonFiniteError(UserError):
    """A loss or gradient that is not a number; raised before the optimizer step, so the weights are still good."""


@dataclass(frozen=True)
class StepResult:
    """What a step reports, equal on every rank."""

    loss: float  # mean over all trained tokens of the global batch, nats
    grad_norm: float  # global, before clipping
    learning_rate: float
    stop_requested: bool  # by any rank
    is_saving: bool  # whether any rank still writes a checkpoint
    work_seconds: list[float]  # every rank's: waiting for data, and the computation of the step before


class TrainState:
    """Model and optimizer of this rank, and how to take a step with them."""

    def __init__(self, recipe: Recipe, context: ParallelContext, device: torch.device, draws: bool = True) -> None:
        """`draws`: with the model's initial values, which a state that is going to be loaded does not need."""
        self.recipe, self.context, self.device = recipe, context, device
        self.model = build_model(recipe, context, device, draws)
        self._work = WorkTimer(device)
        self.optimizer = Optimizer(self.model, recipe.optimizer, context, waiting=self._work.paused)
        self.replicas = ReplicaCheck(self.optimizer, context, device, recipe.parallelism.replica_check_interval)
        self._engine = pipeline_engine(recipe.parallelism.pp_engine)

    def train_step(
        self, batch: StepBatch, stop_requested: bool = False, is_saving: bool = False, data_wait_seconds: float = 0.0
    ) -> StepResult:
        """Forward, backward and update with the step's global batch, of which `batch` is this replica's part.

        `stop_requested` and `is_saving` are this rank's; the result says whether they hold for any rank, so that all
        ranks act alike.

        The loss of every token has weight 1 / (trained tokens of the global batch), so micro-batches and replicas with
        unequal numbers of trained tokens add up to the same mean whatever the layout.

        Raises:
            NonFiniteError: before the update, naming the step and its samples.
            ReplicaError: before the update, naming ranks that hold other weights than they must.
        """
        work_seconds = [0.0] * dist.get_world_size()
        work_seconds[dist.get_rank()] = data_wait_seconds + self._work.seconds()
        trained_tokens = self.context.sum_over_replicas(batch.trained_tokens, self.device)
        self._work.start()
        count = len(batch.micro_batches)
        # The engine divides each micro-batch's loss by their number; the factor takes that back.
        scale = count / trained_tokens.clamp(min=1)
        clear_pipeline_queues()
        self.optimizer.start_step(count)
        outputs = self._engine.train_batch_iter(
            self.model,
            pg=self.context.pp_pg,
            batch=(self._model_inputs(micro_batch, scale) for micro_batch in batch.micro_batches),
            nb_microbatches=count,
            grad_accumulator=None,
        )
        self._work.stop()
        self.replicas.start(batch.step)
        losses = [output["loss"] for output in outputs]
        sums = self._sum_over_ranks(losses, stop_requested, is_saving, *work_seconds)
        norm = self.optimizer.reduce_gradients()
        # The step's only wait for the device.
        norm_value, loss, stops, saves, *work_seconds = torch.cat([norm[None], sums]).tolist()
        self.replicas.finish()
        lr = learning_rate(self.recipe, batch.step)
        result = StepResult(loss, norm_value, lr, stops > 0, saves > 0, work_seconds)
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            self.replicas.compare(batch.step)  # one rank's memory may be why
            raise NonFiniteError(self._non_finite_message(batch, result))
        self.optimizer.step(lr, norm_value)
        return result

    @torch.no_grad()
    def evaluate(self, micro_batches: Iterable[MicroBatch]) -> float:
        """Summed cross-entropy in nats over the trained tokens of all replicas' micro-batches."""
        one = torch.ones((), device=self.device)
        # Without the engine: its validation requires a gradient and leaves its queues dirty.
        losses = [self.model(**self._model_inputs(micro_batch, one))["loss"] for micro_batch in micro_batches]
        return float(self._sum_over_ranks(losses)[0])

    def _model_inputs(self, micro_batch: MicroBatch, scale: torch.Tensor) -> dict[str, Any]:
        """This rank's tokens on the stages that use them, pointers elsewhere, document borders everywhere."""
        stage, model, context = dist.get_rank(self.context.pp_pg), self.model, self.context
        documents = Documents.from_lengths(micro_batch.lengths, self.device, context.cp, context.cp_rank)
        take = documents.sharding.take
        inputs: dict[str, Any] = {
            "input_ids": TensorPointer(group_rank=model.input_pp_rank),
            "label_ids": TensorPointer(group_rank=model.output_pp_rank),
            "label_weights": TensorPointer(group_rank=model.output_pp_rank),
            "documents": documents,
        }
        if stage == model.input_pp_rank:
            inputs["input_ids"] = to_device(take(micro_batch.input_ids), self.device)
        if stage == model.output_pp_rank:
            inputs["label_ids"] = to_device(take(micro_batch.label_ids), self.device)
            mask = to_device(take(micro_batch.label_mask), self.device)
            inputs["label_weights"] = mask.float() * scale
        return inputs

    def _sum_over_ranks(self, losses: list[Any], *values: float) -> torch.Tensor:
        """Sums, the same on every rank: the last stage's losses over micro-batches and replicas, then each value."""
        sums = to_device(torch.tensor([0.0, *values]), self.device)
        if dist.get_rank(self.context.pp_pg) == self.model.output_pp_rank and dist.get_rank(self.context.tp_pg) == 0:
            sums[0] += torch.stack(losses).sum()
        dist.all_reduce(sums, group=self.context.world_pg)
        return sums

    def global_samples(self, batch: StepBatch) -> tuple[int, int]:
        """First and last sample of the step's global batch, counted over the whole run."""
        size, context = self.recipe.global_batch_size, self.context
        first = batch.first_sample - context.replica * size // context.replicas
        return first, first + size - 1

    def _non_finite_message(self, batch: StepBatch, result: StepResult) -> str:
        first, last = self.global_samples(batch)
        return (
            f"Step {batch.step} gave loss {result.loss} and gradient norm {result.grad_norm}; the weights were not "
            f"updated. Its samples are {first} to {last} of the run. Start again to continue from the last "
            f"checkpoint; if the same step fails again, look at these samples, lower "
            f"optimizer.learning_rate_scheduler.learning_rate, or train in model.dtype float32."
        )
