"""Memory as the sum of the tensors that live, without what allocators and message libraries add."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanotron_ext.train.step import TrainState


class LiveBytes(TorchDispatchMode):
    """Peak of the bytes of all tensors that operations have returned and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, tuple[Any, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (storage._weak_ref(), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not torch.UntypedStorage._expired(entry[0])}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


def peak_of_step(state: TrainState, batch: Any) -> int:
    """Bytes of tensors at the step's peak, beyond weights, gradients and optimizer state."""
    buffers = {
        tensor.untyped_storage()._cdata: tensor.nbytes
        for group in state.optimizer.groups
        for tensor in (group.params, group.grads, group.master, *state.optimizer.adam.state[group.master].values())
    }
    with LiveBytes() as live:
        state.model.train()
        state.train_step(batch)
    return live.peak - sum(size for key, size in buffers.items() if key in live.live)
