"""Recipes and random batches small enough for a test, the same on every layout."""

from typing import Any

import torch

from foundation.recipe import Recipe
from nanotron_ext.data.loader import MicroBatch, StepBatch
from nanotron_ext.train.persistence import CheckpointWriter
from nanotron_ext.train.step import TrainState

STATE_KINDS = ("master", "exp_avg", "exp_avg_sq")  # what AdamW's checkpoints hold

RECIPE: dict[str, Any] = {
    "general": {"project": "test", "run": "test", "runs_path": "runs/test", "seed": 3},
    "parallelism": {},
    "model": {
        "dtype": "float32",
        "init_method": {"std": 0.08},
        "model_config": {
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rope_theta": 10000.0,
            "eos_token_id": 1,
        },
    },
    "tokenizer": {"tokenizer_name_or_path": "unused"},
    "tokens": {"sequence_length": 16, "train_steps": 20, "micro_batch_size": 1, "batch_accumulation_per_replica": 1},
    "optimizer": {
        "zero_stage": 0,
        "weight_decay": 0.1,
        "weight_decay_exclude_named_params": [r"token_embedding\.weight$"],
        "clip_grad": 1.0,
        "learning_rate_scheduler": {
            "learning_rate": 0.01,
            "lr_warmup_steps": 4,
            "lr_decay_style": "linear",
            "lr_decay_starting_step": 15,
        },
    },
    "data": {"path": "unused", "seed": 0},
    "data_stages": [{"name": "only", "start_training_step": 1, "mixture": {"source": 1.0}}],
    "checkpoints": {"checkpoint_interval": 10},
}


def small_recipe(**sections: dict[str, Any]) -> Recipe:
    """RECIPE with single keys of sections replaced; `model_config` names the architecture."""
    tree = {name: dict(section) if isinstance(section, dict) else section for name, section in RECIPE.items()}
    architecture = {**tree["model"]["model_config"], **sections.pop("model_config", {})}
    tree["model"] = {**tree["model"], "model_config": architecture}
    for name, values in sections.items():
        tree[name] = {**tree[name], **values}
    return Recipe.model_validate(tree)


def random_batch(recipe: Recipe, step: int, dp_rank: int = 0) -> StepBatch:
    """This replica's part of a global batch that depends on nothing but the step.

    Documents are cut at random and labels are masked unevenly: some samples train hardly a token.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    size, length = recipe.global_batch_size, recipe.tokens.sequence_length
    # Cubed, so that some tokens are frequent and there is something to learn.
    ids = (torch.rand(size, length + 1, generator=generator) ** 3 * recipe.architecture.vocab_size).long()
    keep = torch.rand(size, 1, generator=generator)
    mask = torch.rand(size, length, generator=generator) < keep
    cuts = [sorted(set(torch.randint(1, length, (3,), generator=generator).tolist())) for _ in range(size)]
    per_micro, count = recipe.tokens.micro_batch_size, recipe.tokens.batch_accumulation_per_replica
    micro_batches = []
    for number in range(count):
        first = dp_rank * per_micro * count + number * per_micro
        rows = slice(first, first + per_micro)
        lengths = [end - start for cut in cuts[rows] for start, end in zip([0, *cut], [*cut, length], strict=True)]
        micro_batches.append(MicroBatch(ids[rows].int(), (~mask[rows].flatten()).nonzero().flatten(), lengths))
    trained = sum(int(micro_batch.label_mask.sum()) for micro_batch in micro_batches)
    return StepBatch(step, (step - 1) * size, micro_batches, trained)


def save_checkpoint(state: TrainState, step: int) -> None:
    """Write a checkpoint and wait for it."""
    writer = CheckpointWriter(state, [], lambda activity, work: None)
    writer.start(step, {})
    writer.commit()
