"""Warm-up, stable, decay: the learning rate as a function of the step alone, so that a resume cannot lose it."""

import math

from foundation.recipe import Recipe
from foundation.recipe.schema import LearningRateScheduler


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate that the optimizer step `step` (1-based) uses.

    Linear warm-up reaches the full rate at step `lr_warmup_steps`; the decay's first step is already below it, and the
    last step of training runs at `min_decay_lr`.
    """
    schedule = recipe.optimizer.learning_rate_scheduler
    peak, floor = schedule.learning_rate, schedule.min_decay_lr
    if step <= schedule.lr_warmup_steps:
        return peak * step / schedule.lr_warmup_steps
    start = schedule.lr_decay_starting_step or schedule.lr_warmup_steps + 1
    if schedule.lr_decay_style == "constant" or step < start:
        return peak
    progress = (step - start + 1) / (recipe.tokens.train_steps - start + 1)
    return floor + (peak - floor) * _remaining(schedule, progress)


def _remaining(schedule: LearningRateScheduler, progress: float) -> float:
    """Share of the way down that is still to go, 1 at the start of the decay and 0 at its end."""
    if schedule.lr_decay_style == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1 - (math.sqrt(progress) if schedule.lr_decay_style == "1-sqrt" else progress)
