"""Which rank holds the others up, at no extra message: every rank's time of work rides on the step's one all-reduce.

All ranks take equally long for a step, because each waits for the slowest one. What differs is how long they work
before they wait. Ranks of one pipeline stage have the same work, so each is compared with the others of its stage.
A rank that holds up its tensor-parallel or pipeline partners inside the step makes them as late as itself; they are
named together.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median_low
from typing import TypeAlias

import torch

from nanotron_ext.engine import ParallelContext, dist, node_name

WINDOW_STEPS = 20  # means over so many steps, so that no single slow file or garbage collection raises an alarm
BEHIND = 1.2  # times the median of the stage
_NAMED_AT_MOST = 4

Mark: TypeAlias = "float | torch.cuda.Event"  # a moment, on the host or on the device


class WorkTimer:
    """Seconds of work between `start` and `stop` on the device; on GPUs read a step later, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._whole = self._mark(), self._mark()
        self._pauses: list[tuple[Mark, Mark]] = []
        self._is_running = self._has_stopped = False

    def start(self) -> None:
        self._pauses.clear()
        self._is_running = True
        self._whole = self._mark(), self._whole[1]

    def stop(self) -> None:
        self._whole = self._whole[0], self._mark()
        self._is_running, self._has_stopped = False, True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around waiting for other ranks: a slow one would make the others look as slow as itself."""
        began = self._mark()
        yield
        if self._is_running:
            self._pauses.append((began, self._mark()))

    def seconds(self) -> float:
        """Of the last pair, whose events the device must have passed; 0 before the first."""
        if not self._has_stopped:
            return 0.0
        return self._between(*self._whole) - sum(self._between(*pause) for pause in self._pauses)

    def _mark(self) -> Mark:
        if not self._is_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _between(began: Mark, ended: Mark) -> float:
        if isinstance(began, float) and isinstance(ended, float):
            return ended - began
        assert not isinstance(began, float) and not isinstance(ended, float)
        return began.elapsed_time(ended) / 1e3


@dataclass(frozen=True)
class Slowest:
    rank: int
    seconds_behind: float  # more work per step than the median of its pipeline stage


class StragglerWatch:
    """Follows every rank's seconds of work per step."""

    def __init__(self, nodes: list[str], stages: list[list[int]]) -> None:
        """`nodes`: the node of each rank; `stages`: the ranks of each pipeline stage."""
        self._nodes, self._stages = nodes, stages
        self._sums = [0.0] * len(nodes)
        self._steps = 0
        self._named: tuple[int, ...] = ()

    @classmethod
    def over(cls, context: ParallelContext) -> "StragglerWatch":
        """To be called on all ranks."""
        nodes: list[str] = [""] * dist.get_world_size()
        torch.distributed.all_gather_object(nodes, node_name())
        return cls(nodes, [stage.flatten().tolist() for stage in context.world_rank_matrix[0]])

    def observe(self, seconds: list[float]) -> tuple[Slowest, str | None]:
        """Take in one step's seconds of work per rank; returns its slowest rank, and an alarm when there is news.

        The alarm names ranks and nodes, once at the end of the first window of WINDOW_STEPS steps in which these ranks
        were BEHIND.
        """
        self._sums = [total + new for total, new in zip(self._sums, seconds, strict=True)]
        self._steps += 1
        alarm = None
        if self._steps == WINDOW_STEPS:
            alarm = self._alarm([total / WINDOW_STEPS for total in self._sums])
            self._sums, self._steps = [0.0] * len(seconds), 0
        behind = {rank: seconds[rank] - usual for rank, usual in self._usual(seconds).items()}
        slowest = max(behind, key=lambda rank: behind[rank])
        return Slowest(slowest, behind[slowest]), alarm

    def _usual(self, seconds: list[float]) -> dict[int, float]:
        """For each rank the median of its pipeline stage."""
        usual = [(stage, median_low(seconds[rank] for rank in stage)) for stage in self._stages]
        return {rank: middle for stage, middle in usual for rank in stage}

    def _alarm(self, means: list[float]) -> str | None:
        usual = self._usual(means)
        slow = tuple(sorted((rank for rank in usual if means[rank] > BEHIND * usual[rank]), key=lambda r: -means[r]))
        is_news = set(slow) != set(self._named)
        self._named = slow
        if not slow or not is_news:
            return None
        named = ", ".join(f"{rank} on {self._nodes[rank]}" for rank in slow[:_NAMED_AT_MOST])
        more = f" and {len(slow) - _NAMED_AT_MOST} more" if len(slow) > _NAMED_AT_MOST else ""
        first = slow[0]
        return (
            f"Slow: rank {named}{more} worked {means[first]:.3g} s per step over the last {WINDOW_STEPS} steps, "
            f"others of the same pipeline stage {usual[first]:.3g} s; all ranks wait for the slowest."
        )
