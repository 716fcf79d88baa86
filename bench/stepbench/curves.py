"""Losses of the same steps on the compiled bfloat16 path and on the float32 reference path.

"Within bfloat16's noise" needs the noise: a third path takes the same steps in bfloat16 as the operations are written,
so what it differs from float32 by is rounding alone, and what the compiled path may differ by.
"""

import math
from collections.abc import Sequence
from typing import Any

from stepbench.variants import our_step
from stepbench.work import Work

FUSED, ROUNDED, REFERENCE = "bfloat16, compiled", "bfloat16, as written", "float32, as written"
PATHS = {
    FUSED: ("model.dtype=bfloat16", "parallelism.compile=true"),
    ROUNDED: ("model.dtype=bfloat16", "parallelism.compile=false"),
    REFERENCE: ("model.dtype=float32", "parallelism.compile=false"),
}
MOST_TIMES_THE_NOISE = 2.0  # two draws of the same rounding differ from each other by less


def curves(work: Work, steps: int, threads: int) -> dict[str, Any]:
    """Losses by path, and how far the bfloat16 paths are from float32: relative, root mean square and largest.

    Raises:
        RuntimeError: what torch raises, out of memory and a missing compiler above all.
    """
    import torch

    torch.set_num_threads(threads)
    losses = {}
    for name, overrides in PATHS.items():
        losses[name] = losses_of(work, overrides, steps)
        print(f"  {name:22} loss {losses[name][0]:.4f} to {losses[name][-1]:.4f}", flush=True)
    differences = {name: difference(losses[name], losses[REFERENCE]) for name in (FUSED, ROUNDED)}
    times_the_noise = differences[FUSED]["rms"] / differences[ROUNDED]["rms"]
    return {
        "losses": losses,
        "difference_from_float32": differences,
        "times_the_noise": times_the_noise,
        "within_noise": times_the_noise <= MOST_TIMES_THE_NOISE,
    }


def losses_of(work: Work, overrides: tuple[str, ...], steps: int) -> list[float]:
    take_step = our_step(work, overrides=overrides)
    return [take_step(step) for step in range(1, steps + 1)]


def difference(losses: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Relative, over all steps but the first, which no update has reached."""
    relative = [a / b - 1 for a, b in zip(losses[1:], reference[1:], strict=True)]
    return {"rms": math.sqrt(sum(one**2 for one in relative) / len(relative)), "largest": max(map(abs, relative))}


def verdict(curve: dict[str, Any]) -> str:
    """One sentence: the difference, the noise, and whether the first is within the second."""
    fused, rounded = (curve["difference_from_float32"][name] for name in (FUSED, ROUNDED))
    return (
        f"{FUSED} differs from {REFERENCE} by {fused['rms']:.1e} (largest {fused['largest']:.1e}), {ROUNDED} by "
        f"{rounded['rms']:.1e} (largest {rounded['largest']:.1e}): {curve['times_the_noise']:.2f} times the noise of "
        f"rounding, {'within' if curve['within_noise'] else 'BEYOND'} the {MOST_TIMES_THE_NOISE:g} allowed."
    )


def curve_chart(curve: dict[str, Any]) -> str:
    """The losses of all paths as SVG."""
    from foundation.charts import Series, line_chart

    series = [
        Series(name, list(range(1, len(losses) + 1)), losses) for name, losses in reversed(curve["losses"].items())
    ]
    return line_chart(series, "step", "loss", on_white=True)
