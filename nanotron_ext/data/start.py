"""Where a run's data begins: at its first step, or anew at the step behind which its batch size or mixture changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foundation.recipe import Recipe
from nanotron_ext.ledger import Samples


@dataclass(frozen=True)
class DataStart:
    """What lies behind a run where its present recipe of the data took over.

    step: the last one before. samples: drawn by then, those that were left out included. tokens: trained by then.
    sources: how far each was read, as a checkpoint's `data` says; None where nothing has been read.
    """

    step: int = 0
    samples: int = 0
    tokens: int = 0
    sources: dict[str, dict[str, Any]] | None = None

    def tokens_after(self, step: int, recipe: Recipe) -> int:
        """Trained on by the end of `step`, by the whole run."""
        return self.tokens + (step - self.step) * recipe.tokens_per_step

    def samples_after(self, step: int, recipe: Recipe, skipped: Sequence[Samples]) -> int:
        """Behind the run at the end of `step`, those that it left out on its way included."""
        count = (step - self.step) * recipe.global_batch_size
        return self.samples if count == 0 else int(self.places(np.array([count - 1]), skipped)[0]) + 1

    def places(self, number: NDArray[np.int64], skipped: Sequence[Samples]) -> NDArray[np.int64]:
        """Of the samples trained from here on, counted from 0, their numbers in the run, where all samples count."""
        place = number + self.samples
        for first, count in sorted(skipped):
            if first >= self.samples:
                place = np.where(place >= first, place + count, place)
        return place


RUN_START = DataStart()


def data_start(recipe: Recipe, manifest: dict[str, Any], skipped: Sequence[Samples]) -> DataStart:
    """Where the data of a run with `recipe` begins that goes on from the checkpoint of this manifest.

    Where it began for the checkpoint's run; or behind the checkpoint, when the recipe draws other samples from there.
    """
    then = Recipe.model_validate(manifest["recipe"])
    start = DataStart(**manifest.get("data_start", {}))
    if then.data_stages == recipe.data_stages and then.global_batch_size == recipe.global_batch_size:
        return start
    step = manifest["step"]
    return DataStart(
        step, start.samples_after(step, then, skipped), start.tokens_after(step, then), sources=manifest["data"]
    )
