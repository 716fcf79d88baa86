"""Peak memory of a rank by part, from the shapes that `nanotron_ext.model` and `train.optimizer` keep.

Bytes per rank, with n parameters on it, T tokens per micro-batch, t = tp, b bytes per element of the model's dtype:

* weights b n, gradients 4 n, with ZeRO-1 their reduced shards 4 n / shards, masters 4 n / shards (none beside float32
  weights that are not sharded), Adam 8 n / shards (shards = dp x cp with ZeRO-1, else 1);
* activations kept for the backward pass, per layer and micro-batch in flight:
  b T/t (4 h + (h + 2 kv) + h + 3 ff) + 4 T heads/t, with h hidden_size, kv the width of the keys, ff
  intermediate_size: inputs and outputs of the two norms, queries/keys/values, the attention's result, gate and up,
  silu(gate) * up; with recompute_layer only the layer's input, b T h / t, with recompute_mlp all but what lies between
  the second norm and the MLP's result; with context parallelism the gathered keys and values of the whole micro-batch
  beside this rank's;
* the loss: float32 gradient of the head and two copies in b, and the logits of one chunk of tokens;
* what the backward of one layer adds before it frees what it used.

On CPUs attention keeps one more tensor of h (its results per document, before they are joined).

`trainer="nanotron"` describes the trainer of the published run instead: gradients of the whole model in b beside the
float32 ones, the buckets of DDP, queries and keys before rotation and silu(gate) kept too, and logits of the whole
micro-batch at 2.66 times their float32 size (measured).
"""

from dataclasses import dataclass
from typing import Literal

from foundation.recipe import Recipe
from nanotron_ext.plan.layout import (
    BYTES_PER_ELEMENT,
    StageShard,
    gradient_ranks,
    shared_key_bytes,
    stage_shards,
    tokens_per_micro_batch,
)

Trainer = Literal["ours", "nanotron"]
NANOTRON_LOGITS_FACTOR = 2.66
# Gradients of gathered keys and values: of the block at hand, of those before it, joined, and in the ranks' order.
_GATHERED_BACKWARD_COPIES = 4


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one rank by part; the stage that needs most."""

    stage: int
    weights: float
    gradients: float
    masters: float
    adam: float
    activations: float
    loss: float  # or the backward pass of one layer, where that needs more
    communication: float
    runtime: float

    @property
    def total(self) -> float:
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        return {name: value for name, value in vars(self).items() if name != "stage"}


def peak_memory(recipe: Recipe, runtime_bytes: float, on_cpu: bool = False, trainer: Trainer = "ours") -> Memory:
    """Of the pipeline stage whose ranks need most."""
    stages = (_stage_memory(recipe, stage, runtime_bytes, on_cpu, trainer) for stage in stage_shards(recipe))
    return max(stages, key=lambda memory: memory.total)


def layer_activation_bytes(recipe: Recipe, has_rope: bool, on_cpu: bool, trainer: Trainer = "ours") -> float:
    """Kept by one layer for the backward pass of one micro-batch, without recomputation."""
    model, tp = recipe.architecture, recipe.parallelism.tp
    tokens, b = tokens_per_micro_batch(recipe), BYTES_PER_ELEMENT[recipe.model.dtype]
    h, kv, ff = model.hidden_size, model.num_key_value_heads * model.head_dim, model.intermediate_size
    sharded = recipe.parallelism.tp_mode == "REDUCE_SCATTER"
    norm_rows = tokens / tp if sharded else tokens
    gathered = sharded and tp > 1 and not recipe.parallelism.tp_linear_async_communication
    norms = 2 * h * norm_rows + 2 * h * (tokens if gathered else norm_rows)
    unrotated = h + kv if has_rope and trainer == "nanotron" else 0
    attention = (h + 2 * kv + unrotated + h + (h if on_cpu else 0)) * tokens / tp
    statistics = 4 * (2 * norm_rows + model.num_attention_heads / tp * tokens)
    gated = (4 if trainer == "nanotron" else 3) * ff * tokens / tp
    return b * (norms + attention + gated) + statistics + shared_key_bytes(recipe)


def _mlp_activation_bytes(recipe: Recipe, trainer: Trainer) -> float:
    """The part of `layer_activation_bytes` that lies between the second norm's input and the MLP's result."""
    model, tp = recipe.architecture, recipe.parallelism.tp
    tokens, b = tokens_per_micro_batch(recipe), BYTES_PER_ELEMENT[recipe.model.dtype]
    gated = (4 if trainer == "nanotron" else 3) * model.intermediate_size
    return b * tokens / tp * (model.hidden_size + gated)


def _stage_memory(recipe: Recipe, stage: StageShard, runtime_bytes: float, on_cpu: bool, trainer: Trainer) -> Memory:
    b, n = BYTES_PER_ELEMENT[recipe.model.dtype], stage.parameters
    shards = gradient_ranks(recipe) if recipe.optimizer.zero_stage == 1 else 1
    activations, recomputed = _activations(recipe, stage, on_cpu, trainer)
    loss = _loss(recipe, on_cpu, trainer) + _final_norm(recipe) if stage.has_head else 0.0
    backward = max(_layer_backward(recipe, on_cpu), _GATHERED_BACKWARD_COPIES * shared_key_bytes(recipe))
    working = max(loss, recomputed + backward) + b * stage.largest_parameter
    # Between backward and the next forward pass activations are gone, and these take their place.
    reduced = 4 * n / shards if shards > 1 else 0.0
    update = 4 * stage.tied_elements + (b * n / shards if shards > 1 else 0)
    if not recipe.optimizer.torch_adam_is_fused:
        update += 8 * n / shards  # torch's unfused AdamW keeps two temporary copies
    return Memory(
        stage=stage.number,
        weights=b * n,
        gradients=4 * n + (2 * b * n if trainer == "nanotron" else reduced),
        masters=0.0 if b == 4 and shards == 1 and trainer == "ours" else 4 * n / shards,
        adam=4 * len(recipe.optimizer.moments) * n / shards,
        activations=activations,
        loss=working,
        communication=max(update - activations - working, 0.0) + _gathered(recipe),
        runtime=runtime_bytes,
    )


def _activations(recipe: Recipe, stage: StageShard, on_cpu: bool, trainer: Trainer) -> tuple[float, float]:
    """Bytes kept by all micro-batches in flight, and what recomputing one layer adds."""
    plain, rotary = (layer_activation_bytes(recipe, has_rope, on_cpu, trainer) for has_rope in (False, True))
    if not recipe.parallelism.recompute_layer:
        recomputed = _mlp_activation_bytes(recipe, trainer) if recipe.parallelism.recompute_mlp else 0.0
        kept = (stage.layers - stage.rope_layers) * plain + stage.rope_layers * rotary - stage.layers * recomputed
        return stage.micro_batches_in_flight * kept, recomputed
    sharded = recipe.parallelism.tp if recipe.parallelism.tp_mode == "REDUCE_SCATTER" else 1
    element_bytes = BYTES_PER_ELEMENT[recipe.model.dtype]
    boundary = element_bytes * tokens_per_micro_batch(recipe) * recipe.architecture.hidden_size / sharded
    return stage.micro_batches_in_flight * stage.layers * boundary, rotary


def _loss(recipe: Recipe, on_cpu: bool, trainer: Trainer) -> float:
    """Peak of head and cross-entropy, whose forward pass computes the gradients too."""
    model, tokens = recipe.architecture, tokens_per_micro_batch(recipe)
    b, vocabulary = BYTES_PER_ELEMENT[recipe.model.dtype], model.vocab_size / recipe.parallelism.tp
    if trainer == "nanotron":
        return NANOTRON_LOGITS_FACTOR * 4 * tokens * vocabulary
    head = vocabulary * model.hidden_size
    # Compiled: the logits and their gradient. Else a float32 copy that is overwritten, unless they are float32.
    per_logit = 2 * b if _is_compiled(recipe, on_cpu) else 4 if b == 4 else 4 + 2 * b
    logits = min(recipe.parallelism.loss_chunk_tokens, tokens) * vocabulary * per_logit
    chunks = logits + (4 + b) * head
    hidden = 2 * b * tokens * model.hidden_size
    return chunks + hidden


def _final_norm(recipe: Recipe) -> float:
    rows = tokens_per_micro_batch(recipe)
    if recipe.parallelism.tp_mode == "REDUCE_SCATTER":
        rows //= recipe.parallelism.tp
    return BYTES_PER_ELEMENT[recipe.model.dtype] * rows * recipe.architecture.hidden_size


def _layer_backward(recipe: Recipe, on_cpu: bool) -> float:
    """Gradients of the gated product, of gate and up, and of their weights, less what was freed."""
    model, tp = recipe.architecture, recipe.parallelism.tp
    tokens = tokens_per_micro_batch(recipe)
    rows = 2 * tokens + 2 * model.hidden_size
    if not _is_compiled(recipe, on_cpu):
        rows = max(rows, 4 * tokens)  # both halves exist before they are joined
    return BYTES_PER_ELEMENT[recipe.model.dtype] * rows / tp * model.intermediate_size


def _is_compiled(recipe: Recipe, on_cpu: bool) -> bool:
    setting = recipe.parallelism.compile
    return not on_cpu if setting == "auto" else setting


def _gathered(recipe: Recipe) -> float:
    """The whole sequence's hidden states in front of a column-parallel layer, and their gradient."""
    if recipe.parallelism.tp == 1 or recipe.parallelism.tp_mode != "REDUCE_SCATTER":
        return 0.0
    element_bytes = BYTES_PER_ELEMENT[recipe.model.dtype]
    return 2.0 * element_bytes * tokens_per_micro_batch(recipe) * recipe.architecture.hidden_size
