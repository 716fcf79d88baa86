"""A loss that leaves its recent range."""

import math
import statistics
from collections import deque

from foundation.errors import UserError
from foundation.recipe.schema import Spikes

MIN_SPREAD = 0.005  # of the median: late in a run losses scatter by less, and a rise of that kind is no spike


class SpikeError(UserError):
    """A loss spike in a run that shall stop at one."""


class SpikeDetector:
    """Compares each loss with the median of the steps before, in units of their scatter.

    Median and mean absolute deviation of the median barely notice the spike itself, and a loss that falls steadily
    stays below them. A process starts with an empty window, so the first `window_steps` of each start are not judged.
    """

    def __init__(self, section: Spikes) -> None:
        self._section = section
        self._losses: deque[float] = deque(maxlen=section.window_steps)
        self._in_spike = False

    def observe(self, loss: float) -> str | None:
        """What is wrong with this step's loss, at the first step of a spike."""
        losses, section = list(self._losses), self._section
        self._losses.append(loss)
        if section.action == "off" or len(losses) < section.window_steps:
            return None
        median = statistics.median(losses)
        deviation = statistics.median(abs(other - median) for other in losses)
        spread = max(1.4826 * deviation, MIN_SPREAD * median)  # 1.4826: a normal distribution's sigma in its MAD
        sigmas = (loss - median) / spread if spread else math.copysign(math.inf, loss - median)
        was_in_spike, self._in_spike = self._in_spike, sigmas > section.sigmas
        if not self._in_spike or was_in_spike:
            return None
        return (
            f"loss {loss:.4f} lies {sigmas:.1f} standard deviations above {median:.4f}, the median of the last "
            f"{len(losses)} steps"
        )
