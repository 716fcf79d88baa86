"""Time of a step from its kernels and messages: per layer, per micro-batch, over the pipeline, over the replicas.

A step is: micro-batches through the pipeline (1F1B and AFAB idle alike, for pp - 1 of them), each with its layers'
kernels and tensor-parallel messages; then the reduction of gradients over replicas, the optimizer, and with ZeRO-1 the
gathering of new weights. Recomputation repeats each layer's forward pass, a third of its time. Messages are taken as
exposed, save for two kinds, on devices of their own. tp_linear_async_communication hides them behind matrix products:
of a layer's eight gathers and scatters the two of the forward row layers stay exposed. And new weights are gathered
beside the first micro-batch's forward pass: what takes longer than that stays exposed.
"""

from dataclasses import dataclass

from foundation.recipe import Recipe
from nanotron_ext.plan.kernels import Kernels, Links
from nanotron_ext.plan.layout import (
    BYTES_PER_ELEMENT,
    StageShard,
    gradient_ranks,
    shared_key_bytes,
    stage_shards,
    tokens_per_micro_batch,
)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step by part, of the slowest stage."""

    matrix_products: float
    attention: float
    elementwise: float
    recomputation: float
    loss: float  # with both ends of the model: embedding and head
    tensor_parallel: float
    context_parallel: float
    waiting: float  # for other pipeline stages, their messages, and for a turn on shared cores
    data_parallel: float
    optimizer: float
    overhead: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())


@dataclass(frozen=True)
class Machine:
    """What runs the step. `cores` are those that all processes share (CPUs); None where each has its device."""

    kernels: Kernels
    links: Links
    devices_per_node: int
    overhead: float  # factor on the sum of all parts
    cores: int | None = None


@dataclass(frozen=True)
class _MicroBatch:
    matrix_products: float
    attention: float
    elementwise: float
    recomputation: float
    loss: float
    tensor_parallel: float
    context_parallel: float

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    @property
    def forward(self) -> float:
        """Seconds of its kernels up to the backward: a third of what is not repeated."""
        return (self.matrix_products + self.attention + self.elementwise + self.loss) / 3


def step_time(recipe: Recipe, machine: Machine, document_tokens: int) -> StepTime:
    """`document_tokens`: mean length, weighted by tokens, of the documents that attention works within."""
    parallelism = recipe.parallelism
    micro_batches = recipe.tokens.batch_accumulation_per_replica
    stages = stage_shards(recipe)
    work = [_micro_batch(recipe, stage, machine, document_tokens) for stage in stages]
    slowest = max(work, key=lambda part: part.total)
    turns = max(1.0, parallelism.world_size / machine.cores) if machine.cores else 1.0
    # Where processes share cores, whoever waits leaves its core to others: then the work of all together decides.
    crowded = turns * micro_batches * sum(part.total for part in work) / len(work)
    path = (micro_batches + parallelism.pp - 1) * slowest.total + _handovers(recipe, machine)
    parts = {name: micro_batches * seconds for name, seconds in vars(slowest).items()}
    parts["waiting"] = max(path, crowded) - micro_batches * slowest.total
    parts["data_parallel"] = max(
        _data_parallel(recipe, stage, machine, part.forward) for stage, part in zip(stages, work, strict=True)
    )
    parts["optimizer"] = turns * max(_update(recipe, stage, machine.kernels) for stage in stages)
    return StepTime(**parts, overhead=(machine.overhead - 1) * sum(parts.values()))


def _micro_batch(recipe: Recipe, stage: StageShard, machine: Machine, document_tokens: int) -> _MicroBatch:
    """Forward and backward of one micro-batch on one rank."""
    model, tp, kernels = recipe.architecture, recipe.parallelism.tp, machine.kernels
    tokens, h = tokens_per_micro_batch(recipe), model.hidden_size
    rows = tokens // tp if recipe.parallelism.tp_mode == "REDUCE_SCATTER" else tokens
    heads, kv_heads, width = model.num_attention_heads // tp, model.num_key_value_heads // tp, model.intermediate_size
    mlp = kernels.linear(tokens, h, 2 * width // tp) + kernels.linear(tokens, width // tp, h)
    linears = mlp + (
        kernels.linear(tokens, h, (heads + 2 * kv_heads) * model.head_dim)
        + kernels.linear(tokens, heads * model.head_dim, h)
    )
    rotary, plain = (
        kernels.attention(tokens, heads, kv_heads, model.head_dim, has_rope, document_tokens)
        for has_rope in (True, False)
    )
    attention = stage.rope_layers * rotary + (stage.layers - stage.rope_layers) * plain
    elementwise = 2 * kernels.norm(rows, h) + 2 * kernels.residual(rows, h) + kernels.gated(tokens, width // tp)
    products, elementwise = stage.layers * linears, stage.layers * elementwise
    chunk = recipe.parallelism.loss_chunk_tokens
    loss = kernels.head_and_loss(tokens, h, model.vocab_size // tp, chunk) if stage.has_head else 0.0
    if stage.has_embedding:
        loss += kernels.embedding(tokens, h, model.vocab_size // tp)
    messages = _tensor_parallel(recipe, stage, machine)
    repeated = 0.0
    if recipe.parallelism.recompute_layer:
        repeated = products + attention + elementwise
    elif recipe.parallelism.recompute_mlp:
        repeated = stage.layers * (mlp + kernels.norm(rows, h) + kernels.gated(tokens, width // tp))
    return _MicroBatch(
        matrix_products=products,
        attention=attention,
        elementwise=elementwise + kernels.accumulate(stage.parameters),
        recomputation=repeated / 3,
        loss=loss,
        tensor_parallel=messages,
        context_parallel=_context_parallel(recipe, stage, machine),
    )


def _tensor_parallel(recipe: Recipe, stage: StageShard, machine: Machine) -> float:
    parallelism, tokens = recipe.parallelism, tokens_per_micro_batch(recipe)
    if parallelism.tp == 1:
        return 0.0
    size = BYTES_PER_ELEMENT[recipe.model.dtype] * tokens * recipe.architecture.hidden_size
    one = machine.links.gather(size, parallelism.tp, machine.devices_per_node)
    # Where processes share cores, a message takes one from the products that it would be hidden behind.
    overlaps = machine.cores is None and parallelism.tp_linear_async_communication
    hidden = overlaps and parallelism.tp_mode == "REDUCE_SCATTER"
    per_layer = 2 if hidden else 8  # an all-reduce is a scatter and a gather
    if parallelism.recompute_layer:
        per_layer += 2 if hidden else 4
    elif parallelism.recompute_mlp:
        per_layer += 1 if hidden else 2
    at_the_ends = 2 * stage.has_embedding + 2 * stage.has_head
    # Cross-entropy reduces three numbers per token of every chunk.
    chunk = parallelism.loss_chunk_tokens
    chunks = -(-tokens // chunk) if stage.has_head else 0
    statistics = 6 * chunks * machine.links.gather(4 * chunk, parallelism.tp, machine.devices_per_node)
    return (stage.layers * per_layer + at_the_ends) * one + statistics


def _context_parallel(recipe: Recipe, stage: StageShard, machine: Machine) -> float:
    """Each layer gathers keys and values, and scatters the sum of their gradients."""
    parallelism = recipe.parallelism
    per_node = max(machine.devices_per_node // parallelism.tp, 1)
    one = machine.links.gather(shared_key_bytes(recipe), parallelism.context_parallel_size, per_node)
    return stage.layers * (3 if parallelism.recompute_layer else 2) * one


def _handovers(recipe: Recipe, machine: Machine) -> float:
    """Hidden states from stage to stage and gradients back; one message of each direction in a row is exposed."""
    parallelism = recipe.parallelism
    if parallelism.pp == 1:
        return 0.0
    rows = tokens_per_micro_batch(recipe)
    if parallelism.tp_mode == "REDUCE_SCATTER":
        rows //= parallelism.tp
    size = BYTES_PER_ELEMENT[recipe.model.dtype] * rows * recipe.architecture.hidden_size
    same_node = parallelism.world_size <= machine.devices_per_node
    messages = 2 * (recipe.tokens.batch_accumulation_per_replica + parallelism.pp - 1)
    return messages * machine.links.send(size, same_node)


def _data_parallel(recipe: Recipe, stage: StageShard, machine: Machine, forward: float) -> float:
    """Gradients summed over replicas in float32; with ZeRO-1 each rank gets its part, and all gather new weights."""
    links, devices_per_node = machine.links, machine.devices_per_node
    parallelism, b = recipe.parallelism, BYTES_PER_ELEMENT[recipe.model.dtype]
    ranks = gradient_ranks(recipe)
    per_node = min(max(devices_per_node // parallelism.tp, 1), ranks)
    gradients = links.gather(4 * stage.parameters, ranks, per_node)
    # An all-reduce is a scatter and a gather.
    is_sharded = recipe.optimizer.zero_stage == 1
    second = gradients
    if is_sharded:
        # Where processes share cores, a message takes one from the pass that it would be hidden behind.
        hidden = forward if machine.cores is None else 0.0
        second = max(links.gather(b * stage.parameters, ranks, per_node) - hidden, 0.0)
    tied = 2 * links.gather(4 * stage.tied_elements, 2, 1) if stage.tied_elements else 0.0
    return gradients + second + tied


def _update(recipe: Recipe, stage: StageShard, kernels: Kernels) -> float:
    shards = gradient_ranks(recipe) if recipe.optimizer.zero_stage == 1 else 1
    return kernels.update(stage.parameters, stage.parameters // shards)
