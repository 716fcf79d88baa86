"""New weights under ZeRO-1 on their way to the model, bucket by bucket, while the next forward pass has begun.

After an update each rank has the new values of its shard alone, and every bucket is gathered over the replicas: in the
order in which the forward needs them, and each part of the model (embedding, decoder layer, head) waits for its own.
Few are under way at a time: on a GPU with one hardware queue (CUDA_DEVICE_MAX_CONNECTIONS=1) a gather that has to wait
for the one before it holds up all kernels that were launched later. So the next is sent when one is taken, and the
kernels of the layer that took it run beside it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch

from nanotron_ext.engine import ParallelContext, dist, wait_for
from nanotron_ext.model.smollm3 import SmolLM3ForTraining
from nanotron_ext.train.buckets import Bucket, FlatGroup

Waiting: TypeAlias = Callable[[], AbstractContextManager[Any]]

AHEAD = 2  # the one that is waited for next, and the one behind it


class WeightGathers:
    """The gathers of one rank. All ranks send the same buckets in the same order, since they run the same layers."""

    def __init__(
        self, model: SmolLM3ForTraining, groups: list[FlatGroup], context: ParallelContext, waiting: Waiting
    ) -> None:
        """`waiting` is entered around each wait: the others may be what is waited for."""
        self._context, self._waiting = context, waiting
        place_of_bucket: dict[Bucket, int] = {}  # the first part of the model that needs it
        order = [(group, bucket) for group in groups for bucket in group.buckets]
        bucket_of = {id(slot.entry.parameter): bucket for _, bucket in order for slot in bucket.slots}
        parts = [model.embedding, *model.decoder, model.head]
        needed = [{bucket_of[id(parameter)] for parameter in part.parameters()} for part in parts]
        for place, of_part in enumerate(needed):
            for bucket in of_part:
                place_of_bucket.setdefault(bucket, place)
        self._order = sorted(order, key=lambda pair: place_of_bucket[pair[1]])
        number = {bucket: index for index, (_, bucket) in enumerate(self._order)}
        for part, of_part in zip(parts, needed, strict=True):
            if of_part:
                self._wait_before(part, max(number[bucket] for bucket in of_part) + 1)
        self._taken = len(self._order)
        self._under_way: list[tuple[torch.distributed.Work, torch.Tensor]] = []  # with what is sent, which must live on

    def start(self) -> None:
        """To be called on all ranks when the masters have new values, which must not change before `finish`."""
        self.finish()
        self._taken = 0
        self._send()

    def finish(self) -> None:
        """Have the model hold all new values, for whoever reads them outside of a forward pass. On all ranks."""
        self._take(len(self._order))

    def _wait_before(self, part: torch.nn.Module, stop: int) -> None:
        def wait(*_: Any) -> None:
            self._take(stop)

        part.register_forward_pre_hook(wait)

    def _take(self, stop: int) -> None:
        """Wait for the first `stop` buckets."""
        while self._taken < stop:
            work, _ = self._under_way.pop(0)
            with self._waiting():
                wait_for(work)
            self._taken += 1
            self._send()

    def _send(self) -> None:
        while (number := self._taken + len(self._under_way)) < len(self._order) and len(self._under_way) < AHEAD:
            group, bucket = self._order[number]
            whole, shard = group.params[bucket.whole], group.master[bucket.local].to(group.params.dtype)
            work = dist.all_gather_into_tensor(whole, shard, group=self._context.dp_pg, async_op=True)
            self._under_way.append((work, shard))
