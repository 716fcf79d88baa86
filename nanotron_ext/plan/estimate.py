"""What a recipe will need and cost on given devices."""

from dataclasses import asdict, dataclass
from typing import Any

from foundation.recipe import Recipe
from nanotron_ext.flops import step_flops
from nanotron_ext.plan.layout import BYTES_PER_ELEMENT
from nanotron_ext.plan.memory import Memory, Trainer, peak_memory
from nanotron_ext.plan.search import RECOMPUTATION, with_layout
from nanotron_ext.plan.speed import Machine, StepTime, step_time

SECONDS_PER_DAY = 86_400
FITTING_SHARE = 0.95  # of a device's memory: the rest goes to fragmentation


@dataclass(frozen=True)
class Target:
    """Where the run is to take place."""

    name: str
    machine: Machine
    peak_flops_per_second: float | None  # per device; None where there is no data sheet
    memory_bytes: float  # per device, or of the whole machine where `machine.cores` are shared
    runtime_bytes: float
    on_cpu: bool = False


@dataclass(frozen=True)
class Estimate:
    """All figures of one recipe on one target; sizes in bytes, times in seconds unless a name says otherwise."""

    devices: int
    layout: dict[str, Any]
    parameters: int
    flops_per_token: float
    memory: Memory
    memory_available: float  # per rank
    step: StepTime
    steps: int
    tokens: int
    tokens_per_second_per_device: float
    mfu: float | None
    days: float
    device_hours: float
    cost: float | None
    checkpoint_bytes: float
    checkpoints: int
    checkpoint_interval_minutes: float
    data_bytes: float

    @property
    def fits(self) -> bool:
        return self.memory.total <= FITTING_SHARE * self.memory_available

    @property
    def storage_bytes(self) -> float:
        return self.checkpoints * self.checkpoint_bytes

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with the derived figures."""
        derived = {"fits": self.fits, "storage_bytes": self.storage_bytes}
        memory = {**asdict(self.memory), "total": self.memory.total}
        return {**asdict(self), "memory": memory, "step": {**asdict(self.step), "total": self.step.total}, **derived}


def estimate(
    recipe: Recipe,
    target: Target,
    document_tokens: int | None = None,
    price_per_device_hour: float | None = None,
    trainer: Trainer = "ours",
) -> Estimate:
    """`document_tokens`: mean length of documents, weighted by tokens; default: the whole window, the dearest case."""
    document_tokens = min(document_tokens or recipe.tokens.sequence_length, recipe.tokens.sequence_length)
    devices = recipe.parallelism.world_size
    steps = recipe.last_step - steps_before(recipe)
    time = step_time(recipe, target.machine, document_tokens)
    memory = peak_memory(recipe, target.runtime_bytes, target.on_cpu, trainer)
    flops = step_flops(recipe.architecture, recipe.tokens_per_step, recipe.tokens_per_step * document_tokens)
    peak = target.peak_flops_per_second
    hours = steps * time.total / 3600 * devices
    tokens = steps * recipe.tokens_per_step
    return Estimate(
        devices=devices,
        layout=_layout(recipe),
        parameters=recipe.architecture.num_parameters(),
        flops_per_token=flops / recipe.tokens_per_step,
        memory=memory,
        memory_available=target.memory_bytes / (devices if target.machine.cores else 1),
        step=time,
        steps=steps,
        tokens=tokens,
        tokens_per_second_per_device=recipe.tokens_per_step / devices / time.total,
        mfu=flops / time.total / devices / peak if peak else None,
        days=steps * time.total / SECONDS_PER_DAY,
        device_hours=hours,
        cost=hours * price_per_device_hour if price_per_device_hour is not None else None,
        checkpoint_bytes=recipe.checkpoint_bytes,
        checkpoints=checkpoints_kept(recipe, steps),
        checkpoint_interval_minutes=recipe.checkpoints.checkpoint_interval * time.total / 60,
        data_bytes=tokens * (2 if recipe.architecture.vocab_size <= 2**16 else 4),
    )


def memory_by_recomputation(recipe: Recipe, target: Target, trainer: Trainer = "ours") -> dict[str, float]:
    """Peak bytes of a rank without recomputation, with that of the MLP, and with that of whole layers."""
    return {
        name: peak_memory(with_layout(recipe, **keys), target.runtime_bytes, target.on_cpu, trainer).total
        for name, keys in RECOMPUTATION.items()
    }


def steps_before(recipe: Recipe) -> int:
    """Steps of the segments before this one: up to where the last mixture that it trains on begins.

    A run that continues another one (`resume_checkpoint_path`) starts with a mixture of its own.
    """
    if recipe.checkpoints.resume_checkpoint_path is None:
        return 0
    starts = [stage.start_training_step for stage in recipe.data_stages]
    return max(start for start in starts if start <= recipe.last_step) - 1


def checkpoints_kept(recipe: Recipe, steps: int) -> int:
    """Of those that `steps` steps write."""
    section = recipe.checkpoints
    written = -(-steps // section.checkpoint_interval)
    if section.keep_last is None:
        return written
    milestones = steps // section.keep_every_steps if section.keep_every_steps else 0
    return min(written, section.keep_last + milestones)


def _layout(recipe: Recipe) -> dict[str, Any]:
    parallelism, tokens = recipe.parallelism, recipe.tokens
    return {
        "dp": parallelism.dp,
        "pp": parallelism.pp,
        "tp": parallelism.tp,
        "context_parallel_size": parallelism.context_parallel_size,
        "micro_batch_size": tokens.micro_batch_size,
        "batch_accumulation_per_replica": tokens.batch_accumulation_per_replica,
        "zero_stage": recipe.optimizer.zero_stage,
        "recompute_layer": parallelism.recompute_layer,
        "recompute_mlp": parallelism.recompute_mlp,
        "weight_bytes_per_element": BYTES_PER_ELEMENT[recipe.model.dtype],
    }
