"""This machine's CPU as a device: the kernels of a step, timed on the spot at the recipe's own shapes.

No part of a training step is timed as a whole: only single kernels, each in one process with one thread, and messages
between two processes. So a prediction from them can fail, and a measured step is a check of it.
"""

import functools
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from foundation.loopback import stay_on_loopback
from foundation.recipe import Recipe
from nanotron_ext.engine import dist, initialize_distributed
from nanotron_ext.model.attention import attend
from nanotron_ext.model.build import DTYPES
from nanotron_ext.model.documents import Documents
from nanotron_ext.model.elementwise import Elementwise
from nanotron_ext.model.loss import linear_cross_entropy
from nanotron_ext.plan.speed import Machine

_SECONDS_PER_KERNEL = 0.15
_MESSAGE_BYTES = (64 * 1024, 4 * 1024 * 1024)
_MESSAGES = 30
_ELEMENTWISE = Elementwise(compiled=False)


class MeasuredKernels:
    """`plan.kernels.Kernels`, timed; every shape once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.linear = functools.cache(self._linear)
        self.attention = functools.cache(self._attention)
        self.norm = functools.cache(self._norm)
        self.residual = functools.cache(self._residual)
        self.gated = functools.cache(self._gated)
        self.embedding = functools.cache(self._embedding)
        self.head_and_loss = functools.cache(self._head_and_loss)

    def _linear(self, rows: int, inputs: int, outputs: int) -> float:
        weight = self._leaf(outputs, inputs)
        return self._both_ways(lambda x: functional.linear(x, weight), self._leaf(rows, inputs), weight)

    def _attention(
        self, rows: int, heads: int, kv_heads: int, head_dim: int, has_rope: bool, document_tokens: int
    ) -> float:
        lengths = [document_tokens] * (rows // document_tokens)
        documents = Documents.from_lengths([*lengths, rest] if (rest := rows % document_tokens) else lengths)
        tables = (torch.rand(rows, 1, head_dim // 2), torch.rand(rows, 1, head_dim // 2))

        def between_the_linears(qkv: torch.Tensor) -> torch.Tensor:
            qkv = qkv.unflatten(-1, (-1, head_dim))
            if has_rope:
                q, k, v = _ELEMENTWISE.split_and_rotate(qkv, heads, kv_heads, *tables)
            else:
                q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
            return attend(q, k, v, documents).flatten(1)

        return self._both_ways(between_the_linears, self._leaf(rows, (heads + 2 * kv_heads) * head_dim))

    def _norm(self, rows: int, width: int) -> float:
        weight = self._leaf(width)
        return self._both_ways(lambda x: _ELEMENTWISE.rms_norm(x, weight, 1e-6), self._leaf(rows, width), weight)

    def _residual(self, rows: int, width: int) -> float:
        # In the backward the gradients of both branches are added.
        return 2 * _seconds(functools.partial(torch.add, self._leaf(rows, width).detach(), self._random(rows, width)))

    def _gated(self, rows: int, width: int) -> float:
        return self._both_ways(_ELEMENTWISE.swiglu, self._leaf(rows, 2 * width))

    def _embedding(self, rows: int, hidden_size: int, vocabulary: int) -> float:
        ids = torch.randint(0, vocabulary, (rows,))
        return self._both_ways(lambda table: functional.embedding(ids, table), self._leaf(vocabulary, hidden_size))

    def _head_and_loss(self, rows: int, hidden_size: int, vocabulary: int, chunk_rows: int) -> float:
        weight, labels = self._leaf(vocabulary, hidden_size), torch.randint(0, vocabulary, (rows,))
        weights = torch.full((rows,), 1 / rows)
        initialize_distributed()
        alone = torch.distributed.group.WORLD
        return self._both_ways(
            lambda x: linear_cross_entropy(x, weight, labels, weights, alone, chunk_rows, _ELEMENTWISE),
            self._leaf(rows, hidden_size),
            weight,
        )

    def accumulate(self, elements: int) -> float:
        return elements * self._accumulation_seconds

    def update(self, elements: int, masters: int) -> float:
        return masters * self._adam_seconds + elements * self._copy_seconds

    @functools.cached_property
    def _accumulation_seconds(self) -> float:
        """Per element of a flat buffer; the size is beyond the caches, as every model's gradients are."""
        size = 2**23
        buffer, gradient = torch.zeros(size), torch.zeros(size, dtype=self._dtype)
        return _seconds(lambda: buffer.add_(gradient)) / size

    @functools.cached_property
    def _adam_seconds(self) -> float:
        size = 2**22
        master = torch.zeros(size)
        adam = torch.optim.AdamW([master], fused=True)
        master.grad = torch.zeros(size)

        def step() -> None:
            assert master.grad is not None
            torch.linalg.vector_norm(master.grad)
            master.grad.mul_(1.0)
            adam.step()

        return _seconds(step) / size

    @functools.cached_property
    def _copy_seconds(self) -> float:
        size = 2**23
        master, weights = torch.zeros(size), torch.zeros(size, dtype=self._dtype)
        return _seconds(lambda: weights.copy_(master)) / size

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape).to(self._dtype)

    def _leaf(self, *shape: int) -> torch.Tensor:
        return self._random(*shape).requires_grad_()

    @staticmethod
    def _both_ways(function: Callable[[torch.Tensor], torch.Tensor], *leaves: torch.Tensor) -> float:
        """Seconds of `function(leaves[0])` and of its backward pass to all leaves."""
        gradient = torch.ones_like(function(leaves[0]))
        return _seconds(lambda: torch.autograd.grad(function(leaves[0]), leaves, gradient))


@dataclass(frozen=True)
class MeasuredLinks:
    """Latency and bandwidth of gloo between two processes of this machine."""

    latency_seconds: float
    seconds_per_byte: float

    def gather(self, size_bytes: float, group: int, per_node: int) -> float:
        if group == 1:
            return 0.0
        return (group - 1) * (self.latency_seconds + size_bytes / group * self.seconds_per_byte)

    def send(self, size_bytes: float, same_node: bool) -> float:
        return self.latency_seconds + size_bytes * self.seconds_per_byte


def measure_machine(recipe: Recipe) -> tuple[Machine, float]:
    """The machine, and the bytes that a training process takes before its tensors.

    Kernels are timed when they are asked for; links now, where the recipe needs any. What was measured for one recipe
    serves all others that this process plans.
    """
    torch.set_num_threads(1)
    if recipe.parallelism.world_size > 1:
        links, resident = _measure_links()
    else:
        links, resident = MeasuredLinks(0.0, 0.0), _resident_bytes()
    cores = len(os.sched_getaffinity(0))
    return Machine(_kernels(DTYPES[recipe.model.dtype]), links, 10**9, 1.0, cores), resident


_kernels = functools.cache(MeasuredKernels)


def _resident_bytes() -> float:
    """Memory of a process with all libraries of the trainer, once they have worked."""
    import nanotron_ext.train.run  # noqa: F401

    initialize_distributed()
    weight = torch.ones(1024, 1024, requires_grad=True)
    (weight @ weight).sum().backward()
    torch.optim.AdamW([weight], fused=True).step()
    del weight
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def machine_memory_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _seconds(function: Callable[[], object]) -> float:
    """The least disturbed call, in time on a core: what else runs on the machine should not count."""
    function()
    samples: list[float] = []
    end = time.thread_time() + _SECONDS_PER_KERNEL
    while len(samples) < 3 or time.thread_time() < end:
        start = time.thread_time()
        function()
        samples.append(time.thread_time() - start)
    return min(samples)


@functools.cache
def _measure_links() -> tuple[MeasuredLinks, float]:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_time_messages, (folder,), nprocs=2)
        small, large, resident = (float(text) for text in (Path(folder) / "measured").read_text().split())
    per_byte = max(large - small, 0.0) / (_MESSAGE_BYTES[1] - _MESSAGE_BYTES[0]) * 2  # half of a gather is one's own
    return MeasuredLinks(max(small - per_byte * _MESSAGE_BYTES[0] / 2, 0.0), per_byte), resident


def _time_messages(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    stay_on_loopback()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    seconds = []
    for size in _MESSAGE_BYTES:
        whole, part = torch.zeros(size // 4), torch.zeros(size // 8)
        gather = functools.partial(dist.all_gather_into_tensor, whole, part, group=torch.distributed.group.WORLD)
        for _ in range(3):
            gather()
        start = time.perf_counter()
        for _ in range(_MESSAGES):
            gather()
        seconds.append((time.perf_counter() - start) / _MESSAGES)
    if rank == 0:
        (Path(folder) / "measured").write_text(" ".join(map(str, [*seconds, _resident_bytes()])))
    torch.distributed.destroy_process_group()
