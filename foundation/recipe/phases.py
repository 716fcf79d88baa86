"""The phase that a recipe is for, told by its file's name."""

from pathlib import Path

from foundation.errors import UserError

PHASES = ("pretrain", "long_context", "midtrain", "sft", "apo", "synthetic", "merge", "eval")


def phase_of(path: Path) -> str:
    """One of PHASES. `recipe.yaml` is the resolved recipe of a pretraining run folder.

    Raises:
        UserError: for a name that belongs to no phase.
    """
    if path.stem == "recipe":
        return "pretrain"
    for phase in PHASES:
        if path.stem.startswith(phase):
            return phase
    raise UserError(f"{path}: the name of a recipe starts with its phase, one of {', '.join(PHASES)}. Rename the file.")
