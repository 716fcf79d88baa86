"""95 % intervals of shares, of differences of two shares, and of means over seeds."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

_Z = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: float, trials: float) -> Estimate:
    """A share in [0, 1] with its score interval (Wilson 1927, J. Am. Stat. Assoc. 22); `trials` above 0.

    Tasks that count parts of an answer have fractional successes.
    """
    share = successes / trials
    centre = (share + _Z * _Z / (2 * trials)) / (1 + _Z * _Z / trials)
    half = _Z / (1 + _Z * _Z / trials) * math.sqrt(share * (1 - share) / trials + _Z * _Z / (4 * trials * trials))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))


def newcombe(first: Estimate, second: Estimate) -> Estimate:
    """`second` - `first`, two independent shares with Wilson intervals (Newcombe 1998, Stat. Med. 17, method 10)."""
    difference = second.value - first.value
    below = math.hypot(second.value - second.low, first.high - first.value)
    above = math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(difference, difference - below, difference + above)


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean of at least two independent values, with Student's t."""
    mean = statistics.fmean(values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)
