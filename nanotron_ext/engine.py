"""The bridge to nanotron 0.4: the one module that imports it, and that makes up for its defects.

Everything else in `nanotron_ext` imports nanotron's names from here, after this module has made the changes below. On
GPUs none of them adds work to a training step.

| defect of nanotron 0.4 (file) | what happens without the workaround | workaround |
| --- | --- | --- |
| import cycle logging -> config -> engine -> logging (logging.py) | no module imports | `_break_import_cycle` |
| `torch.cuda.set_device` always (parallel/context.py) | AttributeError on a CPU build | `ParallelContext.set_device` |
| asserts NCCL, creates its own process group (parallel/context.py) | no CPU run | group is created before |
| all groups time out after 10 minutes (distributed.py) | a long save kills the run | `_new_group` |
| sizes and dtypes sent before every tensor (pipeline_parallel/p2p.py) | 18 host syncs a tensor | `StaticShapeP2P` |
| class-level queues (pipeline_parallel/state.py) | an exception poisons later steps | `clear_pipeline_queues` |
| async row linear multiplies its shard only (tensor_parallel/functional.py) | wrong gradients below | model/linear.py |
| a block over its share stays on the earlier stage (models/base.py) | 4 layers on 2 stages: 3 and 1 | model/build.py |
| numpy integers in `unsharded_shape` (parallel/sharded_parameters.py) | unreadable metadata | model/naming.py |
| tying lives in trainer.py, which needs flash-attn | no import without it | model/build.py |
| collectives under names that torch 2.13 renames | a warning on every rank | filtered below |
"""

import importlib.metadata
import os
import socket
import sys
import types
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from foundation.device import DeviceError, device_kind, take_gpu
from foundation.loopback import become_rank

SUPPORTED_NANOTRON = "0.4"
PROCESS_GROUP_TIMEOUT = timedelta(minutes=60)
# (group's name, sender, receiver) -> pipeline transfers that this rank has entered
TRANSFERS: Counter[tuple[str, int, int]] = Counter()


def require_supported_nanotron(version: str) -> None:
    """Refuse any release but the audited one: the workarounds here were checked against it alone."""
    if version != SUPPORTED_NANOTRON:
        raise RuntimeError(
            f"nanotron {version} is installed, but nanotron_ext bridges nanotron {SUPPORTED_NANOTRON} only. "
            f"Run `make setup`, or `pip install nanotron=={SUPPORTED_NANOTRON}`."
        )


def _break_import_cycle() -> None:
    """Import `nanotron.logging` against placeholders of the configuration, then the real configuration.

    logging.py needs nothing of the configuration but the name LoggingArgs in an annotation. The configuration comes
    before everything else because `nanotron.models`, imported first, runs into a second cycle through the optimizers.
    """
    if "nanotron.logging" in sys.modules:
        return
    package, module = types.ModuleType("nanotron.config"), types.ModuleType("nanotron.config.config")
    package.__path__ = []
    module.LoggingArgs = type("LoggingArgs", (), {})  # type: ignore[attr-defined]
    sys.modules.update({"nanotron.config": package, "nanotron.config.config": module})
    try:
        importlib.import_module("nanotron.logging")
    finally:
        del sys.modules["nanotron.config"], sys.modules["nanotron.config.config"]
    importlib.import_module("nanotron.config")


require_supported_nanotron(importlib.metadata.version("nanotron"))
_break_import_cycle()
warnings.filterwarnings("ignore", message=r".*is deprecated\. Please use `torch\.distributed\.\w+_single`")

from nanotron import distributed as dist  # noqa: E402
from nanotron.models import NanotronModel  # noqa: E402
from nanotron.models.base import init_on_device_and_dtype  # noqa: E402
from nanotron.parallel import ParallelContext as _ParallelContext  # noqa: E402
from nanotron.parallel.parameters import NanotronParameter, sanity_check  # noqa: E402
from nanotron.parallel.pipeline_parallel.block import PipelineBlock  # noqa: E402
from nanotron.parallel.pipeline_parallel.engine import (  # noqa: E402
    AllForwardAllBackwardPipelineEngine,
    OneForwardOneBackwardPipelineEngine,
    PipelineEngine,
)
from nanotron.parallel.pipeline_parallel.p2p import P2P  # noqa: E402
from nanotron.parallel.pipeline_parallel.state import PipelineTrainBatchState  # noqa: E402
from nanotron.parallel.pipeline_parallel.tensor_pointer import TensorPointer  # noqa: E402
from nanotron.parallel.tensor_parallel.distributed_differentiable_primitives import (  # noqa: E402
    differentiable_all_gather,
    differentiable_identity,
    differentiable_reduce_scatter_sum,
)
from nanotron.parallel.tensor_parallel.nn import (  # noqa: E402
    TensorParallelColumnLinear,
    TensorParallelEmbedding,
    TensorParallelLinearMode,
    TensorParallelRowLinear,
)
from nanotron.parallel.tied_parameters import create_pg_for_tied_weights, tie_parameters  # noqa: E402


def _new_group(ranks: Sequence[int], timeout: timedelta = PROCESS_GROUP_TIMEOUT, **options: Any) -> Any:
    """nanotron's function with our time-out: what it creates by itself (world, tied weights) has no other."""
    return torch.distributed.new_group(ranks=[int(rank) for rank in ranks], timeout=timeout, **options)


dist.new_group = _new_group

__all__ = [
    "P2P",
    "TRANSFERS",
    "NanotronModel",
    "NanotronParameter",
    "ParallelContext",
    "PipelineBlock",
    "PipelineEngine",
    "StaticShapeP2P",
    "TensorParallelColumnLinear",
    "TensorParallelEmbedding",
    "TensorParallelLinearMode",
    "TensorParallelRowLinear",
    "TensorPointer",
    "clear_pipeline_queues",
    "create_pg_for_tied_weights",
    "differentiable_all_gather",
    "differentiable_identity",
    "differentiable_reduce_scatter_sum",
    "dist",
    "init_on_device_and_dtype",
    "initialize_distributed",
    "node_name",
    "pipeline_engine",
    "sanity_check",
    "tie_parameters",
    "wait_for",
]


@dataclass(frozen=True)
class Launch:
    """Where this process stands among those that torchrun started."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device


def initialize_distributed() -> Launch:
    """Create the default process group: NCCL on GPUs, gloo elsewhere. Without torchrun: a group of one.

    Also sets CUDA_DEVICE_MAX_CONNECTIONS=1, which the overlap of tensor-parallel communication relies on (one
    hardware queue keeps a gather ahead of the matrix product that was launched after it).

    Raises:
        DeviceError: when this rank has not the GPU that it was asked to use, or on all ranks when some have and others
            do not.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" and not torch.distributed.is_initialized():
        become_rank(0, 1)
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    local_rank, kind = int(os.environ.get("LOCAL_RANK", "0")), device_kind()
    if torch.distributed.is_initialized():
        device = take_gpu(local_rank) if kind == "cuda" else torch.device("cpu")
    else:
        store, rank, world_size = next(torch.distributed.rendezvous("env://", timeout=PROCESS_GROUP_TIMEOUT))
        store.set_timeout(PROCESS_GROUP_TIMEOUT)
        _compare_devices(torch.distributed.PrefixStore("device", store), rank, world_size, kind)
        device = take_gpu(local_rank) if kind == "cuda" else torch.device("cpu")
        torch.distributed.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            store=torch.distributed.PrefixStore("default_pg", store),
            rank=rank,
            world_size=world_size,
            timeout=PROCESS_GROUP_TIMEOUT,
        )
    return Launch(torch.distributed.get_rank(), torch.distributed.get_world_size(), local_rank, device)


def _compare_devices(store: torch.distributed.Store, rank: int, world_size: int, mine: str) -> None:
    """Raises DeviceError on all ranks when one is on another kind of device than most: NCCL and gloo do not meet.

    The first rank looks at all, so that the store answers one question per rank.
    """
    store.set(f"kind/{rank}", f"{mine} {node_name()}")
    if rank == 0:
        told = [text.decode().split(" ", 1) for text in store.multi_get([f"kind/{n}" for n in range(world_size)])]
        kinds = [kind for kind, _ in told]
        usual = max(("cuda", "cpu"), key=kinds.count)
        others = [f"rank {n} on {node}" for n, (kind, node) in enumerate(told) if kind != usual]
        named = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
        found = ("no GPU", "but one") if usual == "cuda" else ("a GPU", "but none")
        problem = f"Torch finds {found[0]} for {named}, {found[1]} for the other ranks" if others else ""
        store.set("verdict", problem)
    if problem := store.get("verdict").decode():
        raise DeviceError(
            f"{problem}. A run is on GPUs or on CPUs as a whole: run `nvidia-smi` and "
            f"`smollm3 doctor` there, and set CUDA_VISIBLE_DEVICES to nothing everywhere to train on CPUs."
        )


def node_name() -> str:
    """Of this machine, as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class ParallelContext(_ParallelContext):
    """nanotron's process groups and a context-parallel one, on GPUs and CPUs. Call `initialize_distributed` first.

    The `cp` ranks of a context-parallel group hold the same parameters and share the samples of one replica. So they
    are part of the data-parallel group `dp_pg`, of dp x cp ranks, over which gradients are summed and optimizer states
    sharded; `replica` of `replicas` says whose samples a rank works on. They are neighbours in `dp_pg`, and with tensor
    parallelism next to each other in a node.
    """

    def __init__(self, tp: int, pp: int, dp: int, cp: int = 1) -> None:
        super().__init__(tp, pp, dp * cp)
        self.replicas, self.cp = dp, cp
        by_group = self.world_rank_matrix.reshape(pp, dp, cp, tp).transpose(0, 1, 3, 2)
        self.cp_pg = self.create_new_group(by_group.reshape(-1, cp))

    @property
    def replica(self) -> int:
        return int(dist.get_rank(self.dp_pg)) // self.cp

    @property
    def cp_rank(self) -> int:
        return int(dist.get_rank(self.dp_pg)) % self.cp

    def sum_over_replicas(self, count: int, device: torch.device) -> torch.Tensor:
        """Sum, int64, of what the replicas have counted on their samples; each of their ranks gives its replica's."""
        total = torch.full((), count, dtype=torch.int64, device=device)  # a kernel's argument, not a copy
        dist.all_reduce(total, group=self.dp_pg)
        return total // self.cp

    def set_device(self) -> None:
        """Nothing to do: `initialize_distributed` chose the device."""

    def create_new_group(self, all_groups_ranks: Any) -> Any:
        """nanotron's method without a barrier before and after each kind of group."""
        mine = None
        for ranks in all_groups_ranks:
            key = tuple(sorted(int(rank) for rank in ranks))
            if key not in self.world_ranks_to_pg:
                self.world_ranks_to_pg[key] = dist.new_group(ranks=list(key))
            if torch.distributed.get_rank() in key:
                mine = self.world_ranks_to_pg[key]
        return mine


class StaticShapeP2P(P2P):
    """Pipeline transfers whose shape and dtype both sides know from the recipe: the tensor alone travels.

    nanotron sends two header messages per tensor and reads them on the host. One tensor crosses each stage border
    (the hidden states, `[tokens(/tp), hidden_size]`); its gradient has the same shape.
    """

    def __init__(self, pg: Any, device: torch.device, shape: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__(pg, device)
        self.shape, self.dtype = tuple(shape), dtype
        self._group = torch.distributed.distributed_c10d._get_process_group_name(pg)

    def send_tensors(self, tensors: list[torch.Tensor], to_rank: int, tag: int = 0) -> None:
        for tensor in tensors:
            assert tensor.shape == self.shape and tensor.dtype == self.dtype, (tensor.shape, tensor.dtype)
            peer = dist.get_global_rank(self.pg, to_rank)
            TRANSFERS[self._group, torch.distributed.get_rank(), peer] += 1
            wait_for(torch.distributed.isend(tensor.detach().contiguous(), dst=peer, group=self.pg, tag=tag))

    def recv_tensors(self, num_tensors: int, from_rank: int, tag: int = 0) -> list[torch.Tensor]:
        received = []
        for _ in range(num_tensors):
            buffer = torch.empty(self.shape, dtype=self.dtype, device=self.device)
            peer = dist.get_global_rank(self.pg, from_rank)
            TRANSFERS[self._group, peer, torch.distributed.get_rank()] += 1
            wait_for(torch.distributed.irecv(buffer, src=peer, group=self.pg, tag=tag))
            received.append(buffer.requires_grad_())
        return received


def wait_for(work: torch.distributed.Work | None) -> None:
    """Wait for a message: the device on NCCL, the host on gloo. Whoever is here waits for others (heartbeat.py)."""
    assert work is not None, "this rank is not part of the group"
    work.wait()


def pipeline_engine(name: str) -> PipelineEngine:
    """`1f1b` or `afab`, as in the recipe."""
    return {"1f1b": OneForwardOneBackwardPipelineEngine, "afab": AllForwardAllBackwardPipelineEngine}[name]()


def clear_pipeline_queues() -> None:
    """Empty the queues that all pipeline states share, so that a failed step leaves nothing to the next."""
    for value in vars(PipelineTrainBatchState).values():
        if hasattr(value, "popleft"):
            value.clear()
    PipelineTrainBatchState.activations_buffer.clear()
