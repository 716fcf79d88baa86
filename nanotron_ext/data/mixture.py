"""Which source each sample of the run comes from, and how far every source has been read: exact and in closed form.

Within a stage the sources take turns in a schedule that repeats after `period` samples, the common denominator of the
shares. The j-th sample of a source with `quota` samples per period may use the slots from `floor((j-1) period/quota)`
to `ceil(j period/quota) - 1`; the slot goes to the open sample with the earliest deadline. This is Pfair scheduling
(Baruah, Cohen, Plaxton and Varvel, 1996) on one machine, where earliest deadline first always succeeds, so that after
any number of samples every source is less than one sample away from its exact share.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from foundation.shards.errors import ShardError

MAX_PERIOD = 2**20
"""Longest schedule, in samples (6 MB, about a second). Shares with a larger common denominator are rounded to it."""


@dataclass(frozen=True)
class Stage:
    """A mixture in force for `samples` samples, from global sample `first_sample` on."""

    name: str
    first_sample: int
    samples: int
    shares: Mapping[str, Fraction]


class Schedule:
    """Turns of the sources within one stage.

    Attributes:
        period: samples after which the turns repeat.
        quotas: int64 `[sources]`, samples of each source in a period.
        rounding: largest change of a share that `MAX_PERIOD` made necessary; 0 when all shares are exact.

    Raises:
        ShardError: a share is too small for `MAX_PERIOD`, so that its source would never be drawn.
    """

    def __init__(self, stage: Stage, sources: Sequence[str]) -> None:
        names = list(stage.shares)
        quotas = integer_quotas(list(stage.shares.values()))
        for name, quota in zip(names, quotas, strict=True):
            if quota == 0:
                share = float(stage.shares[name])
                raise ShardError(
                    [
                        f"data_stages: The share {share:.3g} of {name!r} in stage {stage.name!r} is below the smallest "
                        f"one that the schedule can keep, 1/{MAX_PERIOD}. Raise it, or remove the source."
                    ]
                )
        total = sum(stage.shares.values())
        self.period = sum(quotas)
        self.rounding = max(
            float(abs(Fraction(quota, self.period) - share / total))
            for quota, share in zip(quotas, stage.shares.values(), strict=True)
        )
        positions = np.array([sources.index(name) for name in names])
        self.quotas = np.zeros(len(sources), np.int64)
        self.quotas[positions] = quotas
        turns = positions[earliest_deadline_first(quotas, min(self.period, stage.samples))]
        self._source = turns.astype(np.uint16)
        self._ordinal = _ordinals(turns, len(sources))

    def draw(self, sample: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source, and how many samples of it the stage drew before, for samples counted from the stage's first."""
        periods, slot = np.divmod(sample, self.period)
        source = self._source[slot].astype(np.int64)
        return source, periods * self.quotas[source] + self._ordinal[slot]

    def counts(self, samples: int) -> NDArray[np.int64]:
        """Samples of each source, `[sources]`, among the first `samples` of the stage."""
        periods, slots = divmod(samples, self.period)
        return periods * self.quotas + np.bincount(self._source[:slots], minlength=len(self.quotas))


class Mixture:
    """The stages of a run, or of what is left of it, end to end; a source goes on where the stage before left it."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.sources = list(dict.fromkeys(name for stage in stages for name in stage.shares))
        self.schedules = [Schedule(stage, self.sources) for stage in stages]
        per_stage = [schedule.counts(stage.samples) for stage, schedule in zip(stages, self.schedules, strict=True)]
        self._before = np.cumsum([np.zeros(len(self.sources), np.int64), *per_stage[:-1]], axis=0)

    def draw(self, sample: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source of each sample, and how many samples of that source these stages drew before; all of one shape."""
        source, ordinal = np.empty((2, *sample.shape), np.int64)
        for number in range(self._stage_of(int(sample.min())), self._stage_of(int(sample.max())) + 1):
            stage = self.stages[number]
            of_stage = (sample >= stage.first_sample) & (sample < stage.first_sample + stage.samples)
            drawn, within = self.schedules[number].draw(sample[of_stage] - stage.first_sample)
            source[of_stage] = drawn
            ordinal[of_stage] = self._before[number][drawn] + within
        return source, ordinal

    def counts(self, samples: int) -> NDArray[np.int64]:
        """Samples of each source, `[sources]`, from the first stage's first sample to the `samples`-th of the run."""
        number = self._stage_of(max(samples - 1, self.stages[0].first_sample))
        within: NDArray[np.int64] = self.schedules[number].counts(samples - self.stages[number].first_sample)
        return self._before[number] + within

    def _stage_of(self, sample: int) -> int:
        return max(number for number, stage in enumerate(self.stages) if stage.first_sample <= sample)


def integer_quotas(shares: Sequence[Fraction]) -> list[int]:
    """Samples per period in proportion to `shares`: exact, or by largest remainders where `MAX_PERIOD` is too short."""
    denominator = math.lcm(*(share.denominator for share in shares))
    quotas = [int(share * denominator) for share in shares]
    divisor = math.gcd(*quotas)
    quotas = [quota // divisor for quota in quotas]
    period = sum(quotas)
    if period <= MAX_PERIOD:
        return quotas
    floors = [quota * MAX_PERIOD // period for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: quotas[i] * MAX_PERIOD % period, reverse=True)
    for i in by_remainder[: MAX_PERIOD - sum(floors)]:
        floors[i] += 1
    return floors


def earliest_deadline_first(quotas: Sequence[int], slots: int) -> NDArray[np.int64]:
    """The turns of the first `slots` slots, as positions in `quotas`; see the module's description."""
    period, sources = sum(quotas), len(quotas)
    source = np.repeat(np.arange(sources), quotas)
    quota = np.array(quotas)[source]
    number = np.concatenate([np.arange(quota) for quota in quotas])
    first_slot = number * period // quota
    last_slot = -(-(number + 1) * period // quota) - 1
    by_release = np.argsort(first_slot, kind="stable")
    released = np.searchsorted(first_slot[by_release], np.arange(slots), side="right")
    # One integer per sample, ordered by deadline; memory views hand them out one by one, without lists of objects.
    urgency = (last_slot * sources + source)[by_release].data
    turns = np.empty(slots, np.int64)
    out = turns.data
    waiting: list[int] = []
    done = 0
    for slot, until in enumerate(released.data):
        for sample in urgency[done:until]:
            heapq.heappush(waiting, sample)
        done = until
        out[slot] = heapq.heappop(waiting)
    return turns % sources


def _ordinals(turns: NDArray[np.int64], sources: int) -> NDArray[np.uint32]:
    """For each slot, how many earlier slots went to the same source."""
    by_source = np.argsort(turns, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(turns, minlength=sources))[:-1]])
    ordinals = np.empty(len(turns), np.uint32)
    ordinals[by_source] = np.arange(len(turns)) - first[turns[by_source]]
    return ordinals
