"""A merged checkpoint against its inputs: same tensors, right dtype, finite, and equal to the float64 average."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from foundation.finite import block_rows, check_finite
from foundation.hf_folder import FINISHED_FILES
from merge.checkpoint import Checkpoint, MergeError, file_sha256

_DTYPE_NAMES = {"bfloat16": "BF16", "float32": "F32"}
# Relative error of rounding to nearest: bfloat16 has 8 significant bits, float32 24.
_ROUNDING = {"bfloat16": 2.0**-8, "float32": 2.0**-24}


@dataclass(frozen=True)
class Verification:
    """What was compared. `max_rounding_error` is in units of one rounding to the output dtype (1.0 = exact average)."""

    tensors: int
    elements: int
    max_rounding_error: float


def verify_average(
    merged: Checkpoint, inputs: Sequence[Checkpoint], weights: Sequence[float], parent: Checkpoint, dtype: str
) -> Verification:
    """Compare every element of `merged` with sum(weights[i] * inputs[i]) computed in float64, a block at a time.

    mergekit sums in float32 and rounds once, so the bound per element is one rounding of the output dtype plus the
    float32 error of the sum.

    Raises:
        MergeError, NotFiniteError: naming the first tensor or file that differs.
    """
    _check_structure(merged, parent, dtype)
    elements, worst = 0, 0.0
    for name in sorted(merged.tensors):
        for start, (actual, *terms) in _blocks([merged, *inputs], name):
            check_finite(name, actual, merged.path, start)
            elements += actual.numel()
            error = _rounding_error(actual, terms, weights, dtype)
            if error > 1.0:
                raise MergeError(
                    f"The merged tensor {name} is not the weighted average of the inputs: off by {error:.3g} times the "
                    f"rounding of {dtype}, in the rows from {start} on. Do not use {merged.path}."
                )
            worst = max(worst, error)
    return Verification(len(merged.tensors), elements, round(worst, 6))


def _blocks(checkpoints: Sequence[Checkpoint], name: str) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """(first row, the same block of rows of the tensor in every checkpoint)."""
    shape = checkpoints[0].tensors[name].shape
    with ExitStack() as stack:
        files: list[Any] = [
            stack.enter_context(safe_open(checkpoint.tensors[name].file, framework="pt")) for checkpoint in checkpoints
        ]
        if not shape:
            yield 0, [file.get_tensor(name) for file in files]
            return
        parts, rows = [file.get_slice(name) for file in files], block_rows(shape)
        for start in range(0, shape[0], rows):
            yield start, [part[start : start + rows] for part in parts]


def _rounding_error(actual: torch.Tensor, terms: Sequence[torch.Tensor], weights: Sequence[float], dtype: str) -> float:
    """The largest deviation of `actual` from the weighted sum of `terms`, in units of what is allowed."""
    expected, magnitude = torch.zeros_like(actual, dtype=torch.float64), torch.zeros_like(actual, dtype=torch.float64)
    for tensor, weight in zip(terms, weights, strict=True):
        expected.add_(tensor, alpha=weight)
        magnitude.add_(tensor.abs(), alpha=abs(weight))
    allowed = magnitude.mul_((len(terms) + 1) * 2.0**-24).add_(expected.abs(), alpha=_ROUNDING[dtype]).add_(2.0**-133)
    return float(expected.sub_(actual).abs_().div_(allowed).max())


def _check_structure(merged: Checkpoint, parent: Checkpoint, dtype: str) -> None:
    if merged.tensors.keys() != parent.tensors.keys():
        odd = sorted(merged.tensors.keys() ^ parent.tensors.keys())
        raise MergeError(f"The merged model has not the tensors of its parent: {', '.join(odd[:5])}.")
    for name, info in merged.tensors.items():
        if info.shape != parent.tensors[name].shape:
            raise MergeError(f"The merged tensor {name} has shape {info.shape}, not {parent.tensors[name].shape}.")
        if info.dtype != _DTYPE_NAMES[dtype]:
            raise MergeError(f"The merged tensor {name} is {info.dtype}, not {_DTYPE_NAMES[dtype]}.")
    for key in (merged.meaning.keys() | parent.meaning.keys()) - {"dtype", "use_cache"}:
        if merged.meaning.get(key) != parent.meaning.get(key):
            raise MergeError(f"The merged config.json has another {key} than that of {parent.path}.")
    for file in parent.copied_files():
        copy = merged.path / file.name
        if file.name in FINISHED_FILES:
            continue
        if not copy.is_file() or file_sha256(copy) != file_sha256(file):
            raise MergeError(f"{copy} is not the parent's {file}.")
