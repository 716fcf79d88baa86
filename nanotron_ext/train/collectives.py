"""How far each rank has come among the operations that ranks do together, and so who keeps the others waiting.

On a GPU a collective operation does not hold up the program that starts it. Where it waits for a rank that never comes,
the programs of the others run on until they need a result or the device's queue is full, and then stand anywhere: in a
matrix product, a copy, `.item()`. Their stacks say nothing. But every process group counts the operations that a rank
has entered. Who has entered one that another member has not entered yet waits for that member; who is waited for and
waits for nobody is the cause. It costs nothing before an alarm: torch counts anyway.
"""

from collections.abc import Mapping

import torch.distributed
from torch.distributed import distributed_c10d

from nanotron_ext.engine import TRANSFERS

Entered = Mapping[str, int]  # of one rank: group or pipeline transfer -> operations entered


def entered() -> dict[str, int]:
    """This rank's counts; any thread may ask."""
    counts = {f"{sender} to {receiver}": count for (_, sender, receiver), count in TRANSFERS.items()}
    for group, name in dict(distributed_c10d._world.pg_names).items():
        count: int = group._get_sequence_number_for_group()  # type: ignore[attr-defined]  # no stub has it
        if torch.distributed.get_backend(group) == "gloo":  # counts transfers too, NCCL does not
            count -= sum(number for (of_group, *_), number in TRANSFERS.items() if of_group == name)
        counts[f"group {name}"] = count
    return counts


def causes(of_ranks: Mapping[int, Entered]) -> list[int]:
    """The ranks that others wait for and that wait for nobody; all of a circle; empty if all have entered the same."""
    waits_for: dict[int, set[int]] = {}
    for operation in {name for of_rank in of_ranks.values() for name in of_rank}:
        counts = {rank: of_rank[operation] for rank, of_rank in of_ranks.items() if operation in of_rank}
        behind = [rank for rank, count in counts.items() if count < max(counts.values())]
        for rank, count in counts.items():
            if _may_wait(rank, operation):
                waits_for.setdefault(rank, set()).update(other for other in behind if counts[other] < count)
    waited_for = {other for others in waits_for.values() for other in others}
    return sorted(rank for rank in waited_for if not waits_for.get(rank)) or sorted(waited_for)


def _may_wait(rank: int, operation: str) -> bool:
    """A transfer's sender need not wait: what it sent may be on its way."""
    return operation.startswith("group ") or operation.endswith(f"to {rank}")
