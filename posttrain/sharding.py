"""Post-training over several nodes: FSDP2 through accelerate, and float32 masters whatever the wrapper.

FSDP2 rather than DeepSpeed's ZeRO-3: it is part of torch (nothing to compile on the cluster), shards parameter by
parameter, so that masters stay plain float32 tensors that can be looked at, and runs on CPUs too, where it is tested.
3.08 B parameters take 49 GB of float32 masters, gradients and Adam state; sharded over 64 GPUs, less than 1 GB each.
"""

from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from posttrain.progress import TrainingFailure


def fsdp_arguments(activation_checkpointing: bool) -> dict[str, Any]:
    """Of TrainingArguments. Checkpoints hold whole tensors, so that they load on any number of processes, and each is a
    complete model that may become a member of a soup."""
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": ["SmolLM3DecoderLayer"],
            "reshard_after_forward": True,
            "state_dict_type": "FULL_STATE_DICT",
            "activation_checkpointing": activation_checkpointing,
        },
        "activation_checkpointing": False,  # the trainer's own would gather weights once more in the backward
    }


def allow_cpus(arguments: TrainingArguments) -> None:
    """accelerate offers FSDP on every device but CPUs, which need nothing that others do not; before the trainer."""
    state = arguments.distributed_state
    if arguments.fsdp and state is not None and state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_XPU


def reduce_in_float32(trainer: Trainer) -> None:
    """accelerate would sum gradients over processes in the compute type; to be called before training."""
    assert trainer.is_fsdp_enabled, trainer.accelerator.distributed_type
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = torch.distributed.fsdp.MixedPrecisionPolicy(
            param_dtype=plugin.mixed_precision_policy.param_dtype, reduce_dtype=torch.float32
        )


class Float32Masters(TrainerCallback):
    """Updates of a small learning rate vanish in bfloat16 weights: what the optimizer updates has to be float32."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: torch.optim.Optimizer | None = None,
        **_: Any,
    ) -> None:
        assert optimizer is not None
        found = {parameter.dtype for group in optimizer.param_groups for parameter in group["params"]}
        if found != {torch.float32}:
            raise TrainingFailure(
                f"The optimizer updates weights of type {', '.join(sorted(map(str, found)))} instead of torch.float32. "
                "Load the model in float32 and let model.compute_dtype choose the type of the computation."
            )
