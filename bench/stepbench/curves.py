"""Losses of the same steps on the compiled bfloat16 path and on the float32 reference path.

"Within bfloat16's noise" needs the noise: a third path takes the same steps in bfloat16 as the operations are written,
so what it differs from float32 by is rounding alone, and what the compiled path may differ by.

On batches that come again and again the loss goes so low that labels are predicted with confidence. There a fourth path
shows what the curve can see: its label's gradient is a difference of rounded numbers, as it was in an earlier release.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

from stepbench.variants import our_step
from stepbench.work import Work

FUSED, ROUNDED, REFERENCE = "bfloat16, compiled", "bfloat16, as written", "float32, as written"
PATHS = {
    FUSED: ("model.dtype=bfloat16", "parallelism.compile=true"),
    ROUNDED: ("model.dtype=bfloat16", "parallelism.compile=false"),
    REFERENCE: ("model.dtype=float32", "parallelism.compile=false"),
}
ROUNDED_FIRST = "bfloat16, label's gradient from rounded numbers"  # only where batches come again
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
    if work.distinct_steps:
        with label_gradient_from_rounded_numbers():
            losses[ROUNDED_FIRST] = losses_of(work, PATHS[FUSED], steps)
    for name, values in losses.items():
        print(f"  {name:48} loss {values[0]:.4f} to {values[-1]:.4g}", flush=True)
    differences = {name: difference(losses[name], losses[REFERENCE]) for name in losses if name != REFERENCE}
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


@contextlib.contextmanager
def label_gradient_from_rounded_numbers() -> Iterator[None]:
    """Weight x p rounded to the logits' dtype, and then the weight subtracted in it; on one tensor-parallel rank."""
    from nanotron_ext.model import loss

    exact = loss._token_loss

    def rounded_first(logits: Any, labels: Any, token_weights: Any, group: Any, elementwise: Any) -> tuple[Any, Any]:
        dtype = logits.dtype
        token_loss, gradient = exact(logits, labels, token_weights, group, elementwise)
        at_label = (token_weights * (-token_loss).exp()).to(dtype) - token_weights.to(dtype)
        return token_loss, gradient.scatter_(1, labels[:, None], at_label[:, None].to(gradient.dtype))

    loss._token_loss = rounded_first
    try:
        yield
    finally:
        loss._token_loss = exact


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
