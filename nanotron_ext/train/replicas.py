"""Ranks that must hold the same weights are compared, bit for bit, and one that does not is named.

A bit that flips in one replica's memory changes no message and raises no error: its gradients join everybody's sum, and
without ZeRO its masters and Adam state stay different for ever. What two ranks hold alike is hashed on the device:

* the weights, at every step between the backward, which has used them, and the update, which may replace them. The
  hashes of the steps are folded into one, so that also a difference that lasted for one step is seen;
* masters and Adam state where each replica has all of them (ZeRO 0), when they are compared;
* both of copies within a replica: norms over tensor-parallel ranks, the tied embedding over two pipeline stages.

Every `parallelism.replica_check_interval` steps, and before each save, all ranks gather these few numbers. The message
starts behind the backward, beside the reduction of the gradients, and is read where the host waits for the step's loss.
What only one rank holds (masters and Adam state under ZeRO-1) has nothing to be compared with.
"""

from collections import Counter
from collections.abc import Iterator

import torch

from foundation.errors import MachineError
from nanotron_ext.engine import ParallelContext, dist, node_name, wait_for
from nanotron_ext.train.buckets import Bucket, FlatGroup
from nanotron_ext.train.optimizer import Optimizer

COLUMNS = 1024  # 64-bit words in a row; a multiple of a cache line and a block of threads
_FOLD = 6364136223846793005  # odd, so that folding loses nothing (Knuth's multiplier for 64 bits)
_NAMED_AT_MOST = 4

WEIGHTS, STATE, TENSOR_COPIES, STAGE_COPIES = range(4)
_HELD = ("weights", "float32 masters or Adam state", "copies of the norms", "copies of the tied embedding")


class ReplicaError(MachineError):
    """Ranks that must hold the same weights do not; raised on all ranks alike, and nothing is saved."""


class ReplicaCheck:
    """Hashes what this rank shares with others, and compares. All methods are to be called on all ranks."""

    def __init__(
        self, optimizer: Optimizer, context: ParallelContext, device: torch.device, interval: int | None
    ) -> None:
        """`interval`: steps between two comparisons; None switches them off."""
        self._optimizer, self._context, self._interval = optimizer, context, interval
        self._sets = _sets_that_hold_the_same(context)
        self._is_on = interval is not None and bool(self._sets)
        self._odd = torch.arange(1, 2 * COLUMNS, 2, device=device)
        self._hashes = torch.zeros(len(_HELD), dtype=torch.int64, device=device)
        self._under_way: tuple[torch.distributed.Work, torch.Tensor, int] | None = None
        self._equal_at: int | None = None  # the last step at which they were

    def start(self, step: int) -> None:
        """Behind a step's backward: take the weights in, and send the hashes when the step is due. No wait."""
        if self._interval is None or not self._is_on:
            return
        self._take_in_weights()
        if step % self._interval == 0:
            self._send(step)

    def finish(self) -> None:
        """Compare what `start` has sent; the device has come that far.

        Raises:
            ReplicaError: naming the ranks that differ, and their nodes.
        """
        if self._under_way is None:
            return
        work, gathered, step = self._under_way
        self._under_way = None
        wait_for(work)
        self._compare(gathered.view(-1, len(_HELD)).tolist(), step)

    def compare(self, step: int) -> None:
        """As `start` and `finish`, with the state that the step has led to."""
        if self._is_on:
            self._optimizer.wait_for_weights()
            self._take_in_weights()
            self._send(step)
            self.finish()

    def _take_in_weights(self) -> None:
        for group in self._optimizer.groups:
            self._take_in(WEIGHTS, group.params)
        for kind, group, bucket in self._copied():
            self._take_in(kind, group.params[bucket.whole])

    def _send(self, step: int) -> None:
        optimizer = self._optimizer
        for group in () if optimizer.sharded else optimizer.groups:
            for state in optimizer.flat_state(group):
                self._take_in(STATE, state)
        for kind, group, bucket in self._copied():
            for state in optimizer.flat_state(group):
                self._take_in(kind, state[bucket.local])
        gathered = self._hashes.new_empty(dist.get_world_size() * len(_HELD))
        mine = self._hashes.clone()
        work = dist.all_gather_into_tensor(gathered, mine, group=self._context.world_pg, async_op=True)
        self._under_way = work, gathered, step
        self._hashes.zero_()

    def _copied(self) -> Iterator[tuple[int, FlatGroup, Bucket]]:
        """Buckets that other ranks of this replica hold too."""
        over_tensor_ranks = set(dist.get_process_group_ranks(self._context.tp_pg))
        for group in self._optimizer.groups:
            for bucket in group.buckets:
                if bucket.copies:
                    kind = TENSOR_COPIES if set(bucket.copies) == over_tensor_ranks else STAGE_COPIES
                    yield kind, group, bucket

    def _take_in(self, kind: int, flat: torch.Tensor) -> None:
        self._hashes[kind].mul_(_FOLD).add_(hash_of_bits(flat, self._odd))

    def _compare(self, table: list[list[int]], step: int) -> None:
        """`table[rank]` are the numbers of that rank."""
        if any(len({table[rank][kind] for rank in ranks}) > 1 for kind, ranks in self._sets):
            nodes: list[str] = [""] * len(table)
            torch.distributed.all_gather_object(nodes, node_name())
            raise ReplicaError(_message(table, nodes, self._sets, step, self._equal_at))
        self._equal_at = step


def hash_of_bits(flat: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """int64 scalar: the sum modulo 2^64 of a tensor's 64-bit words, each times its column's number in `odd`.

    One pass, in integers, so that no order of summation changes it. Any change of a single word changes it, since odd
    numbers have inverses modulo 2^64.
    """
    words = flat.detach().view(torch.int64)
    whole = len(words) // len(odd) * len(odd)
    rows, rest = words[:whole].view(-1, len(odd)).sum(0), words[whole:]
    return (rows * odd).sum() + (rest * odd[: len(rest)]).sum()


def _sets_that_hold_the_same(context: ParallelContext) -> list[tuple[int, list[int]]]:
    """(kind, ranks) for all sets of at least two ranks whose numbers of that kind must be equal."""
    [by_stage] = context.world_rank_matrix.tolist()  # [pp][dp][tp]
    stages, replicas, width = len(by_stage), len(by_stage[0]), len(by_stage[0][0])
    over_replicas = [[replica[place] for replica in stage] for stage in by_stage for place in range(width)]
    over_tensor_ranks = [replica for stage in by_stage for replica in stage]
    over_stages = [
        [by_stage[0][replica][place], by_stage[-1][replica][place]]
        for replica in range(replicas if stages > 1 else 0)
        for place in range(width)
    ]
    kinds = (over_replicas, over_replicas, over_tensor_ranks, over_stages)
    return [(kind, ranks) for kind, sets in enumerate(kinds) for ranks in sets if len(ranks) > 1]


def _message(
    table: list[list[int]], nodes: list[str], sets: list[tuple[int, list[int]]], step: int, equal_at: int | None
) -> str:
    """Who differs from whom, since when, and what to do."""
    parts = []
    for kind, ranks in sets:
        counts = Counter(table[rank][kind] for rank in ranks)
        (usual, most), *others = counts.most_common()
        if not others:
            continue
        is_majority = 2 * most > len(ranks)
        odd = [rank for rank in ranks if not is_majority or table[rank][kind] != usual]
        named = ", ".join(f"rank {rank} on {nodes[rank]}" for rank in odd[:_NAMED_AT_MOST])
        named += f" and {len(odd) - _NAMED_AT_MOST} more" if len(odd) > _NAMED_AT_MOST else ""
        than = f"others than the {most} that must hold the same" if is_majority else "not the same, as they must"
        parts.append(f"{_HELD[kind]} of {named} are {than}")
    more = f"; and {len(parts) - _NAMED_AT_MOST} more such sets of ranks" if len(parts) > _NAMED_AT_MOST else ""
    since = f"They were equal at step {equal_at}" if equal_at is not None else "They were not compared before"
    return (
        f"Step {step}: {'; '.join(parts[:_NAMED_AT_MOST])}{more}. {since}, and nothing was saved in between: start "
        f"again to go on from the newest checkpoint. A bit has flipped, or a device computes wrongly: when a node is "
        f"named twice, leave it out and test it (nvidia-smi -q -d ECC,ROW_REMAPPER; dcgmi diag -r 3)."
    )
