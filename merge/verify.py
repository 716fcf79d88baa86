"""A merged checkpoint against its inputs: same tensors, right dtype, finite, and equal to the float64 average."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from merge.checkpoint import Checkpoint, MergeError, file_sha256

_DTYPE_NAMES = {"bfloat16": "BF16", "float32": "F32"}
# Relative error of rounding to nearest: bfloat16 has 8 significant bits, float32 24.
_ROUNDING = {"bfloat16": 2.0**-8, "float32": 2.0**-24}
ROWS_PER_TENSOR = 64


@dataclass(frozen=True)
class Verification:
    """What was compared. `max_rounding_error` is in units of one rounding to the output dtype (1.0 = exact average)."""

    tensors: int
    sampled_elements: int
    max_rounding_error: float


def verify_average(
    merged: Checkpoint, inputs: Sequence[Checkpoint], weights: Sequence[float], parent: Checkpoint, dtype: str
) -> Verification:
    """Compare `merged` with sum(weights[i] * inputs[i]) computed in float64, on evenly spread rows of every tensor.

    mergekit sums in float32 and rounds once, so the bound per element is one rounding of the output dtype plus the
    float32 error of the sum.

    Raises:
        MergeError: naming the first tensor or file that differs.
    """
    _check_structure(merged, parent, dtype)
    elements, worst = 0, 0.0
    for name, info in sorted(merged.tensors.items()):
        rows = _sampled_rows(info.shape)
        actual = merged.read_rows(name, rows).to(torch.float64)
        if not torch.isfinite(actual).all():
            raise MergeError(f"The merged tensor {name} holds values that are not finite; check the inputs.")
        expected, magnitude = torch.zeros_like(actual), torch.zeros_like(actual)
        for checkpoint, weight in zip(inputs, weights, strict=True):
            term = weight * checkpoint.read_rows(name, rows).to(torch.float64)
            expected += term
            magnitude += term.abs()
        bound = _ROUNDING[dtype] * expected.abs() + (len(inputs) + 1) * 2.0**-24 * magnitude + 2.0**-133
        error = float(((actual - expected).abs() / bound).max())
        if error > 1.0:
            raise MergeError(
                f"The merged tensor {name} is not the weighted average of the inputs: off by {error:.3g} times the "
                f"rounding of {dtype}. Do not use {merged.path}."
            )
        elements, worst = elements + actual.numel(), max(worst, error)
    return Verification(len(merged.tensors), elements, round(worst, 6))


def _check_structure(merged: Checkpoint, parent: Checkpoint, dtype: str) -> None:
    if merged.tensors.keys() != parent.tensors.keys():
        odd = sorted(merged.tensors.keys() ^ parent.tensors.keys())
        raise MergeError(f"The merged model has not the tensors of its parent: {', '.join(odd[:5])}.")
    for name, info in merged.tensors.items():
        if info.shape != parent.tensors[name].shape:
            raise MergeError(f"The merged tensor {name} has shape {info.shape}, not {parent.tensors[name].shape}.")
        if info.dtype != _DTYPE_NAMES[dtype]:
            raise MergeError(f"The merged tensor {name} is {info.dtype}, not {_DTYPE_NAMES[dtype]}.")
    for file in parent.copied_files():
        copy = merged.path / Path(file).name
        if not copy.is_file() or file_sha256(copy) != file_sha256(file):
            raise MergeError(f"{copy} is not the parent's {file}.")


def _sampled_rows(shape: tuple[int, ...]) -> list[int] | None:
    """Evenly spread rows of the first dimension with the first and the last; None for small tensors, read whole."""
    if len(shape) < 2 or shape[0] <= ROWS_PER_TENSOR:
        return None
    return [round(index * (shape[0] - 1) / (ROWS_PER_TENSOR - 1)) for index in range(ROWS_PER_TENSOR)]
