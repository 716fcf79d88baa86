"""Garbage collection between steps, at the same steps on every rank.

Python looks through all objects whenever enough have been made: 0.15 s beside torch, transformers and wandb (270,000
objects), on any rank in the middle of a step, and all others wait for it. Here it happens between steps, on all ranks
at once; and what start-up and the first step made is left out from then on, as it lives as long as the run: a
collection then takes milliseconds.
"""

import gc
from types import TracebackType

EVERY_STEPS = 50


class GarbageCollection:
    """A context manager around training; Python collects by itself before it and behind it, and in the first step."""

    def __enter__(self) -> "GarbageCollection":
        self._is_ours = False
        return self

    def after_step(self, step: int) -> None:
        """Collect if it is time."""
        if not self._is_ours:
            gc.collect()
            gc.freeze()
            gc.disable()
            self._is_ours = True
        elif step % EVERY_STEPS == 0:
            gc.collect()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._is_ours:
            gc.unfreeze()
            gc.enable()
