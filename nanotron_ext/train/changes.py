"""What a continued run's recipe changes: whether that is possible, and was agreed to."""

from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foundation.recipe import Recipe
from foundation.recipe.architecture import parameters_of
from nanotron_ext.checkpoint import CheckpointError

_SHOWN = 12


def accepted_changes(recipe: Recipe, saved: dict[str, Any], where: Path) -> dict[str, list[Any]]:
    """Changes since `saved`, the resolved recipe found at `where`, that alter the result: key -> [old, new].

    Raises:
        CheckpointError: for a change that no run can make on its way; or one that can be made, unless
            `checkpoints.accept_changes` names it, or a section that it lies in.
    """
    then = _recipe_then(saved, where)
    changes = result_changes(then, recipe)
    _refuse_impossible(then, recipe, where)
    agreed = recipe.checkpoints.accept_changes
    refused = {key: pair for key, pair in changes.items() if not any(_lies_in(key, section) for section in agreed)}
    if refused:
        keys = ",".join(sorted({key.split(".")[0] for key in refused}))
        raise CheckpointError(
            f"{where} was written by another recipe, and the difference changes the result. To make the change from "
            f"here on, agree to it with checkpoints.accept_changes=[{keys}]; else restore the recipe, or "
            f"{_another_run(recipe, where)}. What differs:\n{in_lines(refused)}"
        )
    return changes


def result_changes(then: Recipe, recipe: Recipe) -> dict[str, list[Any]]:
    """What differs between two recipes and alters the result: key -> [old, new]."""
    return {key: [old, new] for key, old, new in differences(then.identity(), recipe.identity())}


def _recipe_then(saved: dict[str, Any], where: Path) -> Recipe:
    try:
        return Recipe.model_validate(saved)
    except ValidationError as error:
        raise CheckpointError(
            f"{where} was written by a release with another recipe schema ({error.error_count()} differences, the "
            f"first: {error.errors()[0]['loc']}). Continue it with that release."
        ) from None


def _refuse_impossible(then: Recipe, recipe: Recipe, where: Path) -> None:
    """Raises CheckpointError for changes that are refused whatever is agreed to."""
    tokens, length = recipe.tokens.sequence_length, then.tokens.sequence_length
    found = [
        (then.data.seed, recipe.data.seed, "data.seed", "the sources would be read in another order"),
        (then.chunk_tokens, recipe.chunk_tokens, "data.chunk_tokens", "the sources would be read in another order"),
        (length, tokens, "tokens.sequence_length", "the windows of the data would be others"),
    ]
    problems = [f"{key} is {now} here, {before} there: {why}" for before, now, key, why in found if before != now]
    shapes_then, shapes = (
        {name: parameter.shape for name, parameter in parameters_of(one.architecture).items()} for one in (then, recipe)
    )
    if differing := [name for name in {**shapes_then, **shapes} if shapes_then.get(name) != shapes.get(name)]:
        name = differing[0]
        here, there = (one.get(name, "absent") for one in (shapes, shapes_then))
        problems.append(
            f"model.model_config changes {len(differing)} parameters; the first is {name}: {here} here, {there} there"
        )
    if problems:
        raise CheckpointError(
            f"{where} cannot be continued with this recipe. Restore these keys, or {_another_run(recipe, where)}:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def _another_run(recipe: Recipe, where: Path) -> str:
    """The way to a run of its own, for the middle of a sentence."""
    if where.is_relative_to(recipe.run_folder):
        return "start a new run with another general.run"
    return (
        "start a new run without checkpoints.resume_checkpoint_path (checkpoints.load_weights_path starts one from "
        "weights alone)"
    )


def harmless_changes(recipe: Recipe, saved: dict[str, Any]) -> dict[str, list[Any]]:
    """Changes that leave the result as it is: layout, paths, logging."""
    shaping = ("model.", "optimizer.", "data_stages.", "general.seed", "tokens.", "data.seed")
    layout = (
        *("optimizer.zero_stage", "optimizer.torch_adam_is_fused"),
        *("tokens.stop_step", "tokens.val_check_interval", "tokens.limit_val_batches"),
    )
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
    if isinstance(old, list) and isinstance(new, list) and (len(old) == len(new) or _are_mappings([*old, *new])):
        pairs = enumerate(zip_longest(old, new))
        return [found for i, (left, right) in pairs for found in differences(left, right, f"{key}.{i}")]
    return [] if old == new else [(key, old, new)]


def _are_mappings(values: list[Any]) -> bool:
    """As data stages are, of which a line each says what differs; a list of names is shown whole."""
    return all(isinstance(value, dict) for value in values)


def _lies_in(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")
