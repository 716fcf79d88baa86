"""The run's state on disk: every rank writes its share of a checkpoint, and reads what its layout needs of one."""

from typing import Any

import torch

from nanotron_ext.checkpoint import (
    STATE_KINDS,
    CheckpointReader,
    checkpoint_folder,
    finish_checkpoint,
    save_shard,
)
from nanotron_ext.engine import dist
from nanotron_ext.train.step import TrainState


def save_checkpoint(state: TrainState, step: int, data: dict[str, Any]) -> None:
    """Write `<run>/checkpoints/<step>`; it becomes visible, and `latest` names it, when every rank has written.

    `data` is what each source has given so far; a resume computes it anew and compares.
    """
    recipe, context = state.recipe, state.context
    final = checkpoint_folder(recipe.run_folder, step)
    temporary = final.with_name(f"{step}.tmp")
    dp_rank = dist.get_rank(context.dp_pg)
    temporary.mkdir(parents=True, exist_ok=True)
    if state.optimizer.sharded or dp_rank == 0:
        tp_rank, pp_rank = dist.get_rank(context.tp_pg), dist.get_rank(context.pp_pg)
        for kind in STATE_KINDS:
            save_shard(temporary, kind, f"pp{pp_rank}-tp{tp_rank}-dp{dp_rank}", state.optimizer.state(kind))
    torch.distributed.barrier()
    if torch.distributed.get_rank() == 0:
        content = {
            "step": step,
            "recipe_hash": recipe.hash(),
            "recipe": recipe.to_dict(),
            "model_config": recipe.architecture.model_dump(mode="json"),
            "dtype": recipe.model.dtype,
            "tokenizer": recipe.tokenizer.tokenizer_name_or_path,
            "data": data,
        }
        finish_checkpoint(temporary, final, content)
    torch.distributed.barrier()


def load_checkpoint(state: TrainState, reader: CheckpointReader) -> None:
    """Fill masters, Adam state and model from a checkpoint of any layout.

    Raises:
        CheckpointError: when it does not hold all of this model and its Adam state.
    """
    for kind in STATE_KINDS:
        _load_kind(state, reader, kind)
    state.optimizer.set_steps_taken(reader.step)
    state.optimizer.masters_to_model()


def load_weights(state: TrainState, reader: CheckpointReader) -> None:
    """Fill the model and its masters; Adam starts afresh.

    Raises:
        CheckpointError: when the checkpoint is of another architecture.
    """
    _load_kind(state, reader, "master")
    state.optimizer.masters_to_model()


def _load_kind(state: TrainState, reader: CheckpointReader, kind: str) -> None:
    for slot, start, local in state.optimizer.state(kind):
        entry = slot.entry
        whole = reader.read(kind, entry.name, expected_shape=entry.shape)
        local.copy_(entry.cut(whole).flatten()[start : start + local.numel()])
