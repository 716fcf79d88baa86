"""Which function reads a recipe of which phase: only this package imports all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datapipes.synthetic.recipe import load_recipe as load_synthetic_recipe
from eval.recipe import load_eval_recipe
from foundation.recipe import load_recipe
from foundation.recipe.phases import phase_of
from merge.recipe import load_merge_recipe
from posttrain.recipe import load_recipe as load_posttraining_recipe

_LOADERS: dict[str, Callable[..., Any]] = {
    "pretrain": load_recipe,
    "long_context": load_recipe,
    "midtrain": load_posttraining_recipe,
    "sft": load_posttraining_recipe,
    "apo": load_posttraining_recipe,
    "synthetic": load_synthetic_recipe,
    "merge": load_merge_recipe,
    "eval": load_eval_recipe,
}


def loader_for(path: Path) -> Callable[..., Any]:
    """The function that reads a recipe of this file's phase.

    Raises:
        UserError: for a name that belongs to no phase.
    """
    return _LOADERS[phase_of(path)]
