"""From a recipe to the model of this rank: layers to stages, nanotron's parallel layers, tied parameters."""

import logging
from typing import Any

import torch

from foundation.recipe import Recipe
from nanotron_ext.engine import (
    ParallelContext,
    PipelineBlock,
    StaticShapeP2P,
    TensorParallelLinearMode,
    create_pg_for_tied_weights,
    dist,
    init_on_device_and_dtype,
    sanity_check,
    tie_parameters,
)
from nanotron_ext.model.attention_backends import AttentionShape, choose_attention
from nanotron_ext.model.elementwise import Elementwise
from nanotron_ext.model.init import NoDraws, initialize
from nanotron_ext.model.smollm3 import SmolLM3ForTraining, TensorParallel
from nanotron_ext.model.stages import balanced_stages

logger = logging.getLogger("nanotron_ext.model")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def build_model(
    recipe: Recipe, parallel_context: ParallelContext, device: torch.device, draws: bool = True
) -> SmolLM3ForTraining:
    """The model of this rank, its tied parameters marked for nanotron's synchronisation.

    `draws`: with its initial values, which all ranks share in drawing; else with whatever lies in memory.
    """
    parallelism, dtype = recipe.parallelism, DTYPES[recipe.model.dtype]
    tp = TensorParallel(
        parallel_context.tp_pg,
        TensorParallelLinearMode[parallelism.tp_mode],
        parallelism.tp_linear_async_communication,
    )
    tokens = recipe.tokens.micro_batch_size * recipe.tokens.sequence_length // parallelism.context_parallel_size
    rows = tokens // parallelism.tp if tp.shards_sequence else tokens
    p2p = StaticShapeP2P(parallel_context.pp_pg, device, (rows, recipe.architecture.hidden_size), dtype)
    logger.info(f"Attention by {attention_backend(recipe, device)}.")
    is_compiled = device.type == "cuda" if parallelism.compile == "auto" else parallelism.compile
    elementwise = Elementwise(is_compiled)
    model = SmolLM3ForTraining(recipe.architecture, parallelism, parallel_context, p2p, tp, elementwise)
    stages = parallelism.layers_per_stage or balanced_stages(recipe.architecture, parallelism.pp)
    with init_on_device_and_dtype(device, dtype), NoDraws():
        _place_on_stages(model, stages)
    mark_tied_parameters(model, parallel_context, tp)
    sanity_check(model)
    if draws:
        std = recipe.model.init_method.std
        initialize(model, recipe.architecture, recipe.general.seed, std, parallel_context)
    return model


def attention_backend(recipe: Recipe, device: torch.device) -> str:
    """Name of the kernel that computes this rank's attention, tried out here before a step depends on it."""
    config, tp = recipe.architecture, recipe.parallelism.tp
    shape = AttentionShape(config.num_attention_heads // tp, config.num_key_value_heads // tp, config.head_dim)
    return choose_attention(device.type, DTYPES[recipe.model.dtype], shape)[0]


def _place_on_stages(model: SmolLM3ForTraining, layers_per_stage: list[int]) -> None:
    """Give each pipeline block its stage; blocks of other ranks stay empty."""
    last_stage = len(layers_per_stage) - 1
    model.embedding.build_and_set_rank(0)
    stage_of_layer = [stage for stage, count in enumerate(layers_per_stage) for _ in range(count)]
    for block, stage in zip(model.decoder, stage_of_layer, strict=True):
        assert isinstance(block, PipelineBlock)
        block.build_and_set_rank(stage)
    model.head.build_and_set_rank(last_stage)
    model.input_pp_rank, model.output_pp_rank = 0, last_stage


def mark_tied_parameters(model: SmolLM3ForTraining, context: ParallelContext, tp: TensorParallel) -> None:
    """Tie embedding and head, and mark what every tensor-parallel rank holds whole (the norms).

    Gradients of tied copies are summed: between the first and the last stage for the embedding, over the
    tensor-parallel group for norms when each rank sees its own part of the sequence.
    """
    tp_rank, dp_rank = dist.get_rank(context.tp_pg), dist.get_rank(context.dp_pg)
    if model.config.tie_word_embeddings:
        targets = {
            "embedding.pp_block.token_embedding.weight": model.input_pp_rank,
            "head.pp_block.lm_head.weight": model.output_pp_rank,
        }
        ties = [
            (target, (int(context.world_rank_matrix[0, stage, dp_rank, tp_rank]),)) for target, stage in targets.items()
        ]
        tie_parameters(model, ties=ties, parallel_context=context, reduce_op=dist.ReduceOp.SUM)
    tp_ranks = tuple(sorted(dist.get_process_group_ranks(context.tp_pg)))
    reduce_op: Any = dist.ReduceOp.SUM if tp.shards_sequence else None
    for path, parameter in list(model.named_parameters()):
        if not getattr(parameter, "is_sharded", False):
            tie_parameters(model, ties=[(path, tp_ranks)], parallel_context=context, reduce_op=reduce_op)
    create_pg_for_tied_weights(model, context)
