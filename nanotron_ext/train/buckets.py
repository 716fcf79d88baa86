"""Flat buffers of parameters and gradients, in buckets that are summed over the replicas while the backward still runs.

All parameters of one weight-decay group live in one flat buffer of the model's dtype, their gradients in one float32
buffer of the same layout. Both are cut into buckets of whole parameters, each padded so that it splits evenly over the
ranks that share the optimizer's state: rank r holds the r-th part of every bucket, and its masters are these parts laid
end to end. A bucket's reduction starts when the last micro-batch's backward has brought all of its gradients. Buckets
start in one fixed order, from the model's end to its beginning, so that all replicas send the same messages in the same
order whatever their documents.

Parameters of which other ranks of the same replica hold copies (norms over tensor-parallel ranks, the tied embedding
over two pipeline stages) lie in buckets of their own, which are laid out alike on all of these ranks. Their gradients
are joined last, after the sum over replicas: sums over replicas are rounded differently in different groups of ranks,
and copies that got them as they are would drift apart, bit by bit, over the run.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nanotron_ext.engine import ParallelContext, dist, wait_for
from nanotron_ext.model.naming import GlobalParameter

# Of float32 gradients: a hundred buckets for the 3B model, and over 192 replicas still half a megabyte for each rank.
BUCKET_BYTES = 100 * 2**20

# Elements: parameters and shards begin at multiples of it, 32 bytes in bfloat16, as vector instructions and wide loads
# like it; so no value depends on where in a buffer it lies.
ALIGNMENT = 16


@dataclass(frozen=True, eq=False)
class Slot:
    """A parameter's place in its group's flat buffers: elements [start, stop)."""

    entry: GlobalParameter
    start: int
    stop: int


@dataclass(eq=False)
class Bucket:
    """Parameters whose gradients travel in one message.

    whole: the bucket in the flat buffers, padding included. shard: this rank's part of it, there.
    local: the same part in the rank's masters.
    copies: world ranks of one replica that hold the same parameters, this rank included; () where it is the only one.
    sums_copies: whether their gradients are parts of a sum, or each the whole.
    missing: gradients that this step's backward passes have yet to bring.
    """

    slots: list[Slot]
    whole: slice
    shard: slice
    local: slice
    is_counted: bool
    copies: tuple[int, ...]
    sums_copies: bool
    missing: int = 0


class FlatGroup:
    """One weight-decay group: flat parameters, gradients, and this rank's shard of the float32 masters.

    A float32 model on a rank that holds all of the optimizer's state needs no masters beside its parameters: there
    `master` is `params`.
    """

    def __init__(self, entries: list[GlobalParameter], weight_decay: float, shard_over: int, shard_rank: int) -> None:
        self.weight_decay = weight_decay
        self.buckets: list[Bucket] = []
        offset = local = 0
        for kind, of_kind in itertools.groupby(sorted(entries, key=_kind), key=_kind):
            for members in _up_to_bucket_bytes(of_kind):
                sizes = [entry.parameter.numel() for entry in members]
                *starts, end = itertools.accumulate(map(_aligned, sizes), initial=offset)
                slots = [
                    Slot(entry, start, start + size) for entry, start, size in zip(members, starts, sizes, strict=True)
                ]
                part = _aligned(-(-(end - offset) // shard_over))
                whole = slice(offset, offset + part * shard_over)
                shard = slice(offset + shard_rank * part, offset + (shard_rank + 1) * part)
                is_uncounted, copies, sums_copies = kind
                ours = slice(local, local + part)
                self.buckets.append(Bucket(slots, whole, shard, ours, not is_uncounted, copies, sums_copies))
                offset, local = whole.stop, local + part
        example = entries[0].parameter
        self.params = torch.zeros(offset, dtype=example.dtype, device=example.device)
        self.grads = torch.zeros(offset, dtype=torch.float32, device=example.device)
        for slot in self.slots:
            view = self.view(self.params, slot)
            view.copy_(slot.entry.parameter.detach())
            slot.entry.parameter.data = view
        if shard_over == 1 and self.params.dtype == torch.float32:
            self.master = self.params
        else:
            self.master = torch.cat([self.params[bucket.shard] for bucket in self.buckets]).float()

    @property
    def slots(self) -> Iterator[Slot]:
        return (slot for bucket in self.buckets for slot in bucket.slots)

    @property
    def counted_shard(self) -> slice:
        """The part of the local shard that enters the gradient norm; buckets that do come first."""
        return slice(0, max((bucket.local.stop for bucket in self.buckets if bucket.is_counted), default=0))

    @staticmethod
    def view(flat: torch.Tensor, slot: Slot) -> torch.Tensor:
        """The parameter's part of a flat buffer, in its shape."""
        return flat[slot.start : slot.stop].view_as(slot.entry.parameter)

    def parts(self, local: torch.Tensor) -> Iterator[tuple[Slot, int, torch.Tensor]]:
        """Per parameter with a part in this rank's shard: slot, first element, and the part's view of `local`."""
        for bucket in self.buckets:
            for slot in bucket.slots:
                start, stop = max(slot.start, bucket.shard.start), min(slot.stop, bucket.shard.stop)
                if start < stop:
                    first = bucket.local.start + start - bucket.shard.start
                    yield slot, start - slot.start, local[first : first + stop - start]


class GradientCollector:
    """A step's gradients: added up over micro-batches as they appear, then summed over replicas and tied copies."""

    def __init__(self, groups: list[FlatGroup], names: list[str], context: ParallelContext, sharded: bool) -> None:
        """`names` are those of the model's parameters, from its beginning to its end."""
        self._groups, self._context, self._sharded = groups, context, sharded
        place = {name: index for index, name in enumerate(names)}
        buckets = [(group, bucket) for group in groups for bucket in group.buckets]
        buckets.sort(key=lambda pair: min(place[slot.entry.name] for slot in pair[1].slots), reverse=True)
        self._order = buckets
        self._launched: list[torch.distributed.Work] = []
        self._next = 0
        self._untouched: set[Slot] = set()
        for group, bucket in buckets:
            for slot in bucket.slots:
                self._collect(group, bucket, slot)

    def start(self, micro_batches: int) -> None:
        """To be called before a step's first backward pass; what an abandoned step has left is overwritten."""
        self._next = 0
        self._untouched = {slot for group in self._groups for slot in group.slots}
        for group in self._groups:
            group.master.grad = None
            for bucket in group.buckets:
                bucket.missing = micro_batches * len(bucket.slots)

    def finish(self) -> None:
        """Each group's `master.grad` becomes this rank's shard of the sum over micro-batches, replicas and copies."""
        assert self._next == len(self._order), "a parameter got no gradient"
        for work in self._launched:
            wait_for(work)
        self._launched.clear()
        for group in self._groups:
            if group.master.grad is None:
                group.master.grad = group.grads
        for group, bucket in self._order:
            if bucket.copies:
                self._join_copies(group, bucket)

    def _collect(self, group: FlatGroup, bucket: Bucket, slot: Slot) -> None:
        gradient = group.view(group.grads, slot)

        def collect(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            if slot in self._untouched:  # so the buffer needs no clearing
                self._untouched.remove(slot)
                gradient.copy_(parameter.grad)
            else:
                gradient.add_(parameter.grad)
            parameter.grad = None
            bucket.missing -= 1
            if bucket.missing == 0:
                self._launch_complete()

        slot.entry.parameter.register_post_accumulate_grad_hook(collect)

    def _join_copies(self, group: FlatGroup, bucket: Bucket) -> None:
        """Give all copies of a bucket's parameters one gradient, the same to the last bit."""
        assert group.master.grad is not None
        part, ranks = group.master.grad[bucket.local], self._context.world_ranks_to_pg[bucket.copies]
        if bucket.sums_copies:
            dist.all_reduce(part, op=dist.ReduceOp.SUM, group=ranks)
        else:
            dist.broadcast(part, src=bucket.copies[0], group=ranks)

    def _launch_complete(self) -> None:
        """Reduce the next buckets in order, as long as their gradients are complete."""
        dp_pg = self._context.dp_pg
        while self._next < len(self._order) and self._order[self._next][1].missing == 0:
            group, bucket = self._order[self._next]
            self._next += 1
            gradients = group.grads[bucket.whole]
            if self._sharded:
                if group.master.grad is None:
                    group.master.grad = torch.empty_like(group.master)
                part = group.master.grad[bucket.local]
                work = dist.reduce_scatter_tensor(part, gradients, op=dist.ReduceOp.SUM, group=dp_pg, async_op=True)
                self._launched.append(work)
            elif dp_pg.size() > 1:
                self._launched.append(dist.all_reduce(gradients, op=dist.ReduceOp.SUM, group=dp_pg, async_op=True))


def _aligned(elements: int) -> int:
    return -(-elements // ALIGNMENT) * ALIGNMENT


def _kind(entry: GlobalParameter) -> tuple[bool, tuple[int, ...], bool]:
    """Whether the gradient norm leaves this copy out; the ranks with copies, and whether their gradients are summed."""
    if not entry.parameter.is_tied:
        return False, (), False
    tie = entry.parameter.get_tied_info()
    ranks = tuple(tie.global_ranks) if len(tie.global_ranks) > 1 else ()
    return tie.global_ranks[0] != dist.get_rank(), ranks, tie.reduce_op is not None


def _up_to_bucket_bytes(entries: Iterator[GlobalParameter]) -> Iterator[list[GlobalParameter]]:
    """Whole parameters in lists of at least BUCKET_BYTES, but for the last."""
    members: list[GlobalParameter] = []
    for entry in entries:
        members.append(entry)
        if 4 * sum(member.parameter.numel() for member in members) >= BUCKET_BYTES:
            yield members
            members = []
    if members:
        yield members
