"""What must hold between the keys of a recipe: arithmetic, order of steps, shares. No file is opened here."""

import re
from collections.abc import Iterator

from foundation.recipe.architecture import parameters_of
from foundation.recipe.errors import Problem
from foundation.recipe.schema import BLOCKS_PER_RANK, Recipe

_MODEL = ("model", "model_config")


def check_recipe(recipe: Recipe) -> list[Problem]:
    """All contradictions between keys, in the order of the recipe's sections."""
    return [
        *_check_architecture(recipe),
        *_check_tokenizer(recipe),
        *_check_parallelism(recipe),
        *_check_tokens(recipe),
        *_check_schedule(recipe),
        *_check_optimizer(recipe),
        *_check_data_stages(recipe),
        *_check_checkpoints(recipe),
    ]


def _check_architecture(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.architecture
    if model.hidden_size % model.num_attention_heads:
        yield Problem(
            (*_MODEL, "hidden_size"),
            f"hidden_size {model.hidden_size} is not divisible by num_attention_heads {model.num_attention_heads}.",
        )
    elif model.head_dim % 2:
        yield Problem(
            (*_MODEL, "hidden_size"),
            f"The head size {model.head_dim} (hidden_size / num_attention_heads) is odd; rotary needs it even.",
        )
    if model.num_attention_heads % model.num_key_value_heads:
        yield Problem(
            (*_MODEL, "num_key_value_heads"),
            f"num_attention_heads {model.num_attention_heads} is not divisible by "
            f"num_key_value_heads {model.num_key_value_heads}.",
        )
    scaling = model.rope_scaling
    if scaling and scaling.factor * scaling.original_max_position_embeddings != model.max_position_embeddings:
        yield Problem(
            (*_MODEL, "rope_scaling", "factor"),
            f"factor {scaling.factor:g} x original_max_position_embeddings "
            f"{scaling.original_max_position_embeddings} is not max_position_embeddings "
            f"{model.max_position_embeddings}; other software would stretch positions by another factor.",
        )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_id = getattr(model, name)
        if token_id is not None and not 0 <= token_id < model.vocab_size:
            yield Problem((*_MODEL, name), f"{name} {token_id} lies outside the vocabulary of {model.vocab_size}.")


def _check_tokenizer(recipe: Recipe) -> Iterator[Problem]:
    train, vocab_size = recipe.tokenizer.train, recipe.architecture.vocab_size
    if train is not None and train.vocab_size > vocab_size:
        yield Problem(
            ("tokenizer", "train", "vocab_size"),
            f"A tokenizer of {train.vocab_size} tokens does not fit the model's vocab_size {vocab_size}. Give both the "
            f"same.",
        )


def _check_parallelism(recipe: Recipe) -> Iterator[Problem]:
    model, parallelism = recipe.architecture, recipe.parallelism
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size"):
        if (value := getattr(model, name)) % parallelism.tp:
            yield Problem(
                ("parallelism", "tp"),
                f"tp {parallelism.tp} does not divide {name} {value}; every tensor-parallel rank needs an equal share. "
                f"Choose a tp that divides it.",
            )
    if model.num_hidden_layers < parallelism.pp:
        yield Problem(
            ("parallelism", "pp"),
            f"{model.num_hidden_layers} layers cannot fill {parallelism.pp} pipeline stages: every stage needs a "
            f"decoder layer. Lower pp to at most {model.num_hidden_layers}.",
        )
    layers = parallelism.layers_per_stage
    if layers is not None and (
        len(layers) != parallelism.pp or sum(layers) != model.num_hidden_layers or min(layers) < 1
    ):
        yield Problem(
            ("parallelism", "layers_per_stage"),
            f"{layers} must hold {parallelism.pp} counts of at least 1 that sum to {model.num_hidden_layers}.",
        )
    micro_batches = recipe.tokens.batch_accumulation_per_replica
    if parallelism.pp_engine == "1f1b" and micro_batches < parallelism.pp - 1:
        yield Problem(
            ("tokens", "batch_accumulation_per_replica"),
            f"{micro_batches} micro-batches are too few for 1f1b over {parallelism.pp} stages: give at least "
            f"{parallelism.pp - 1}, better {4 * parallelism.pp}.",
        )
    if parallelism.recompute_layer and parallelism.recompute_mlp:
        yield Problem(
            ("parallelism", "recompute_mlp"), "recompute_layer includes the MLP; set one of the two to false."
        )
    yield from _check_token_split(recipe)


def _check_token_split(recipe: Recipe) -> Iterator[Problem]:
    """Every rank must hold equally many tokens of a micro-batch."""
    parallelism, cp = recipe.parallelism, recipe.parallelism.context_parallel_size
    tokens = recipe.tokens.micro_batch_size * recipe.tokens.sequence_length
    if cp > 1 and tokens % (cp * BLOCKS_PER_RANK):
        yield Problem(
            ("parallelism", "context_parallel_size"),
            f"A micro-batch of {tokens} tokens does not split into {BLOCKS_PER_RANK} equal blocks for each of {cp} "
            f"context-parallel ranks. Make tokens.micro_batch_size x tokens.sequence_length a multiple of "
            f"{cp * BLOCKS_PER_RANK}.",
        )
    elif parallelism.tp_mode == "REDUCE_SCATTER" and tokens // cp % parallelism.tp:
        yield Problem(
            ("tokens", "sequence_length"),
            f"A rank's {tokens // cp} tokens of a micro-batch are not divisible by tp {parallelism.tp}, which shards "
            f"them in REDUCE_SCATTER mode.",
        )


def _check_tokens(recipe: Recipe) -> Iterator[Problem]:
    tokens = recipe.tokens
    if tokens.sequence_length > recipe.architecture.max_position_embeddings:
        yield Problem(
            ("tokens", "sequence_length"),
            f"sequence_length {tokens.sequence_length} exceeds max_position_embeddings "
            f"{recipe.architecture.max_position_embeddings}.",
        )
    if recipe.chunk_tokens % tokens.sequence_length:
        yield Problem(
            ("data", "chunk_tokens"),
            f"chunk_tokens {recipe.chunk_tokens} is no multiple of tokens.sequence_length {tokens.sequence_length}; a "
            f"chunk must hold whole windows.",
        )
    if tokens.stop_step is not None and tokens.stop_step > tokens.train_steps:
        yield Problem(
            ("tokens", "stop_step"),
            f"stop_step {tokens.stop_step} lies behind train_steps {tokens.train_steps}.",
        )
    if tokens.val_check_interval is not None and not recipe.data.validation:
        yield Problem(
            ("data", "validation"),
            "tokens.val_check_interval asks for validation, but data.validation names no held-out source.",
        )


def _check_schedule(recipe: Recipe) -> Iterator[Problem]:
    schedule, train_steps = recipe.optimizer.learning_rate_scheduler, recipe.tokens.train_steps
    section = ("optimizer", "learning_rate_scheduler")
    if schedule.lr_warmup_steps > train_steps:
        yield Problem(
            (*section, "lr_warmup_steps"),
            f"A warm-up of {schedule.lr_warmup_steps} steps does not fit into train_steps {train_steps}.",
        )
    if schedule.min_decay_lr > schedule.learning_rate:
        yield Problem(
            (*section, "min_decay_lr"),
            f"min_decay_lr {schedule.min_decay_lr} is above learning_rate {schedule.learning_rate}.",
        )
    if schedule.lr_decay_style == "constant":
        for name in ("lr_decay_starting_step", "lr_decay_steps"):
            if getattr(schedule, name) is not None:
                yield Problem((*section, name), f"{name} has no meaning when lr_decay_style is constant; remove it.")
        return
    start = schedule.lr_decay_starting_step or schedule.lr_warmup_steps + 1
    if start <= schedule.lr_warmup_steps:
        yield Problem(
            (*section, "lr_decay_starting_step"),
            f"The decay starts at step {start}, inside the warm-up of {schedule.lr_warmup_steps} steps.",
        )
    end = start + schedule.lr_decay_steps - 1 if schedule.lr_decay_steps else train_steps
    if end != train_steps or start > train_steps:
        yield Problem(
            (*section, "lr_decay_steps"),
            f"The decay runs from step {start} to step {end}, but training ends at step {train_steps}. "
            f"Set lr_decay_steps to {max(train_steps - start + 1, 1)}, or move lr_decay_starting_step.",
        )


def _check_optimizer(recipe: Recipe) -> Iterator[Problem]:
    for position, pattern in enumerate(recipe.optimizer.weight_decay_exclude_named_params):
        try:
            matches = any(re.search(pattern, name) for name in parameters_of(recipe.architecture))
        except re.error as error:
            problem = f"{pattern!r} is not a regular expression: {error}."
        else:
            problem = f"{pattern!r} matches no parameter of this model, so it excludes nothing. Correct or remove it."
            if matches:
                continue
        yield Problem(("optimizer", "weight_decay_exclude_named_params", position), problem)


def _check_data_stages(recipe: Recipe) -> Iterator[Problem]:
    previous_start = 0
    for position, stage in enumerate(recipe.data_stages):
        key = ("data_stages", position)
        if position == 0 and stage.start_training_step != 1:
            yield Problem(
                (*key, "start_training_step"),
                f"The first stage starts at step 1, not {stage.start_training_step}.",
            )
        if stage.start_training_step <= previous_start:
            yield Problem(
                (*key, "start_training_step"),
                f"Stage {stage.name!r} starts at step {stage.start_training_step}, not after its predecessor's "
                f"{previous_start}. List stages in the order of their steps.",
            )
        if stage.start_training_step > recipe.tokens.train_steps:
            yield Problem(
                (*key, "start_training_step"),
                f"Stage {stage.name!r} starts behind the last step {recipe.tokens.train_steps}.",
            )
        previous_start = stage.start_training_step
        for source, weight in stage.mixture.items():
            if not 0 < weight < float("inf"):
                yield Problem(
                    (*key, "mixture", source),
                    f"The weight {weight} of {source!r} must be a positive number; to leave a source out, remove it.",
                )
                return
        total = float(sum(stage.shares().values()))
        if abs(total - 1) > 1e-9:
            yield Problem(
                (*key, "mixture"),
                f"The weights of stage {stage.name!r} sum to {total:.8g}, not 1. Correct them, or set "
                f"normalize: true to have them rescaled in the open.",
            )


def _check_checkpoints(recipe: Recipe) -> Iterator[Problem]:
    checkpoints = recipe.checkpoints
    if checkpoints.remote_path is not None and not checkpoints.checkpoints_path_is_shared_file_system:
        yield Problem(
            ("checkpoints", "remote_path"),
            "Uploads need one folder with all files, which checkpoints_path_is_shared_file_system: false denies. Put "
            "general.runs_path on a shared file system, or remove remote_path.",
        )
    if checkpoints.resume_checkpoint_path and checkpoints.load_weights_path:
        yield Problem(
            ("checkpoints", "load_weights_path"),
            "resume_checkpoint_path continues a run, load_weights_path starts a new one from its weights: keep one.",
        )
