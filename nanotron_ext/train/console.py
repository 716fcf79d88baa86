"""What a run prints while it trains."""

import logging
from collections import deque
from typing import Any

from foundation.recipe import Recipe

_SMOOTHED_STEPS = 20

logger = logging.getLogger("nanotron_ext.train")


class Console:
    """A line every few steps: where the run is, how it does, when it ends."""

    def __init__(self, recipe: Recipe) -> None:
        self._last_step = recipe.last_step
        self._interval = recipe.logging.iteration_step_info_interval
        self._seconds: deque[float] = deque(maxlen=_SMOOTHED_STEPS)

    def show(self, row: dict[str, Any], seconds: float) -> None:
        step = row["step"]
        # The first step of a process pays for warm-up and would spoil the estimate.
        self._seconds.append(seconds)
        if step % self._interval and step != self._last_step:
            return
        eta = (self._last_step - step) * sum(self._seconds) / len(self._seconds)
        logger.info(
            f"step {step}/{self._last_step} | loss {row['loss']:.4f} | lr {row['lr']:.3g} | "
            f"grad norm {row['grad_norm']:.3f} | {row['tokens_per_second']:,.0f} tokens/s | mfu {row['mfu']:.1%} | "
            f"data {row['data_wait_seconds'] * 1e3:.1f} ms | eta {_duration(eta)}"
        )
        for source, bits in row.get("validation_bits_per_byte", {}).items():
            logger.info(f"  held-out {source}: {bits:.4f} bits per byte")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
