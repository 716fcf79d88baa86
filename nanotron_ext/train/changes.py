"""What a continued run's recipe changes, and whether that was agreed to."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foundation.recipe import Recipe
from nanotron_ext.checkpoint import CheckpointError

_SHOWN = 12


def accepted_changes(recipe: Recipe, saved: dict[str, Any], where: Path) -> dict[str, list[Any]]:
    """Changes since `saved`, the resolved recipe found at `where`, that alter the result: key -> [old, new].

    Raises:
        CheckpointError: unless `checkpoints.accept_changes` names each of them, or a section that it lies in.
    """
    try:
        then = Recipe.model_validate(saved)
    except ValidationError as error:
        raise CheckpointError(
            f"{where} was written by a release with another recipe schema ({error.error_count()} differences, the "
            f"first: {error.errors()[0]['loc']}). Continue it with that release."
        ) from None
    changes = {key: [old, new] for key, old, new in differences(then.identity(), recipe.identity())}
    agreed = recipe.checkpoints.accept_changes
    refused = {key: pair for key, pair in changes.items() if not any(_lies_in(key, section) for section in agreed)}
    if refused:
        keys = ",".join(sorted({key.split(".")[0] for key in refused}))
        raise CheckpointError(
            f"{where} was written by another recipe, and the difference changes the result. Restore the recipe, choose "
            f"another general.run, or agree to the change with checkpoints.accept_changes=[{keys}]. What differs:\n"
            f"{in_lines(refused)}"
        )
    return changes


def harmless_changes(recipe: Recipe, saved: dict[str, Any]) -> dict[str, list[Any]]:
    """Changes that leave the result as it is: layout, paths, logging."""
    shaping = ("model.", "optimizer.", "data_stages.", "general.seed", "tokens.", "data.seed")
    layout = ("optimizer.zero_stage", "optimizer.torch_adam_is_fused", "tokens.stop_step", "tokens.val_check_interval")
    found = differences(saved, recipe.to_dict())
    return {key: [old, new] for key, old, new in found if not key.startswith(shaping) or key in layout}


def in_lines(changes: dict[str, list[Any]]) -> str:
    lines = [f"  {key}: {old!r} there, {new!r} here" for key, (old, new) in changes.items()]
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return "\n".join(lines[:_SHOWN] + more)


def differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves that differ between two nested mappings, as (dotted key, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(name for name in new if name not in old)]
        return [
            found
            for name in keys
            for found in differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for i, (left, right) in pairs for found in differences(left, right, f"{key}.{i}")]
    return [] if old == new else [(key, old, new)]


def _lies_in(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")
