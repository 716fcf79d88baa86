"""Global parameters: one name and one shape per parameter, whatever the layout that holds its pieces."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foundation.recipe.architecture import EMBEDDING, LM_HEAD
from nanotron_ext.engine import NanotronParameter


@dataclass(frozen=True)
class Piece:
    """A block of a global tensor and where it lies in a local one, as (start, stop) per dimension."""

    local: tuple[tuple[int, int], ...]
    whole: tuple[tuple[int, int], ...]

    @staticmethod
    def slices(bounds: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in bounds)


@dataclass(frozen=True)
class GlobalParameter:
    """A parameter on this rank: its global name and shape, and which pieces of the global tensor it holds."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    parameter: NanotronParameter

    def cut(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's part of the global tensor `whole`, in the local layout."""
        assert tuple(whole.shape) == self.shape, (self.name, whole.shape, self.shape)
        local = whole.new_empty(self.parameter.shape)
        for piece in self.pieces:
            local[Piece.slices(piece.local)] = whole[Piece.slices(piece.whole)]
        return local


def global_name(module_path: str) -> str:
    """Parameter name without the pipeline's wrapping: `decoder.0.pp_block.mlp...` -> `decoder.0.mlp...`."""
    return module_path.replace(".pp_block", "")


def global_parameters(model: nn.Module) -> Iterator[GlobalParameter]:
    """Every parameter on this rank, in module order; a tied head appears under the embedding's name."""
    seen: set[str] = set()
    for path, parameter in model.named_parameters(remove_duplicate=False):
        assert isinstance(parameter, NanotronParameter)
        name = global_name(path)
        if name == LM_HEAD and parameter.is_tied:
            name = EMBEDDING
        if name in seen:
            continue
        seen.add(name)
        yield GlobalParameter(name, *_placement(parameter), parameter)


def _placement(parameter: NanotronParameter) -> tuple[tuple[int, ...], tuple[Piece, ...]]:
    """Global shape and pieces. nanotron leaves numpy integers and open slices in its metadata; here all are ints."""
    if not parameter.is_sharded:
        bounds = tuple((0, size) for size in parameter.shape)
        return tuple(parameter.shape), (Piece(bounds, bounds),)
    info: Any = parameter.get_sharded_info()
    shape = tuple(int(size) for size in info.unsharded_shape)
    pieces = tuple(
        Piece(_bounds(pair.local_slices, parameter.shape), _bounds(pair.global_slices, shape))
        for pair in info.local_global_slices_pairs
    )
    return shape, pieces


def _bounds(slices: tuple[slice, ...], shape: Any) -> tuple[tuple[int, int], ...]:
    return tuple(
        (int(part.start or 0), int(size if part.stop is None else part.stop))
        for part, size in zip(slices, shape, strict=True)
    )
