"""What one rank of each pipeline stage holds and works on, from the recipe alone."""

from dataclasses import dataclass

from foundation.recipe import Recipe, architecture
from nanotron_ext.model.stages import balanced_stages

BYTES_PER_ELEMENT = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class StageShard:
    """One tensor-parallel rank of one pipeline stage."""

    number: int
    layers: int
    rope_layers: int
    parameters: int  # elements on this rank
    largest_parameter: int  # elements
    tied_elements: int  # of an embedding whose gradient is summed with another stage's
    has_embedding: bool
    has_head: bool
    micro_batches_in_flight: int  # whose activations are held at the same time


def tokens_per_micro_batch(recipe: Recipe) -> int:
    """Of one rank: context parallelism shares a sample's tokens."""
    tokens = recipe.tokens.micro_batch_size * recipe.tokens.sequence_length
    return tokens // recipe.parallelism.context_parallel_size


def gradient_ranks(recipe: Recipe) -> int:
    """Ranks that hold the same parameters, sum their gradients, and share the optimizer's state with ZeRO-1."""
    return recipe.parallelism.dp * recipe.parallelism.context_parallel_size


def shared_key_bytes(recipe: Recipe) -> float:
    """Keys and values of a whole micro-batch, which a layer gathers with context parallelism; else 0."""
    parallelism, model = recipe.parallelism, recipe.architecture
    if parallelism.context_parallel_size == 1:
        return 0.0
    width = 2 * model.num_key_value_heads * model.head_dim / parallelism.tp
    tokens = tokens_per_micro_batch(recipe) * parallelism.context_parallel_size
    return BYTES_PER_ELEMENT[recipe.model.dtype] * tokens * width


def stage_shards(recipe: Recipe) -> list[StageShard]:
    """The pipeline's stages, first to last."""
    model, parallelism = recipe.architecture, recipe.parallelism
    tp, pp = parallelism.tp, parallelism.pp
    of_layer = [parameter.elements_per_rank(tp) for parameter in architecture.layer(model)]
    of_head = [parameter.elements_per_rank(tp) for parameter in architecture.head(model)]
    embedding = architecture.embedding(model).elements_per_rank(tp)
    shards = []
    first = 0
    for number, layers in enumerate(parallelism.layers_per_stage or balanced_stages(model, pp)):
        has_embedding, has_head = number == 0, number == pp - 1
        # A tied model's head is a copy of the embedding, on a stage that does not hold it already.
        copies = has_embedding or (has_head and model.tie_word_embeddings)
        held = [*of_layer * layers, *of_head * has_head, *[embedding] * copies]
        shards.append(
            StageShard(
                number=number,
                layers=layers,
                rope_layers=sum(model.layer_has_rope(index) for index in range(first, first + layers)),
                parameters=sum(held),
                largest_parameter=max(held),
                tied_elements=embedding if model.tie_word_embeddings and pp > 1 and copies else 0,
                has_embedding=has_embedding,
                has_head=has_head,
                micro_batches_in_flight=_in_flight(recipe, number),
            )
        )
        first += layers
    return shards


def _in_flight(recipe: Recipe, stage: int) -> int:
    micro_batches = recipe.tokens.batch_accumulation_per_replica
    if recipe.parallelism.pp_engine == "afab":
        return micro_batches if recipe.parallelism.pp > 1 else 1
    return min(micro_batches, recipe.parallelism.pp - stage)
