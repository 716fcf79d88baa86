"""Every layout of a recipe on a number of devices, the fastest first."""

import itertools
from collections.abc import Iterator

from foundation.recipe import Recipe, RecipeError
from foundation.recipe.checks import check_recipe

RECOMPUTATION: dict[str, dict[str, bool]] = {
    "none": {"recompute_mlp": False, "recompute_layer": False},
    "mlp": {"recompute_mlp": True, "recompute_layer": False},
    "layer": {"recompute_mlp": False, "recompute_layer": True},
}


def with_layout(recipe: Recipe, **values: object) -> Recipe:
    """The recipe with other values of `parallelism`, `micro_batch_size`, accumulation or `zero_stage`.

    Raises:
        RecipeError: when the new values contradict others.
    """
    sections: dict[str, dict[str, object]] = {"parallelism": {}, "tokens": {}, "optimizer": {}}
    for name, value in values.items():
        section = next(key for key in sections if name in type(getattr(recipe, key)).model_fields)
        sections[section][name] = value
    changed = {key: getattr(recipe, key).model_copy(update=update) for key, update in sections.items()}
    other = recipe.model_copy(update=changed)
    if problems := check_recipe(other):
        raise RecipeError("layout", problems, {})
    return other


def layouts(recipe: Recipe, devices: int, devices_per_node: int) -> Iterator[Recipe]:
    """All splits of the recipe's global batch over `devices` that its architecture allows.

    Tensor-parallel groups stay within a node. What the recipe says of other keys (pipeline schedule, modes) stays.
    """
    samples = recipe.global_batch_size
    degrees = [2**power for power in range(7)]
    for tp, pp, cp in itertools.product(degrees, degrees, degrees):
        replicas, left = divmod(devices, tp * pp * cp)
        if left or not replicas or tp > devices_per_node or samples % replicas or cp > _largest_cp(recipe):
            continue
        sizes = [size for size in (1, 2, 3, 4, 6, 8, 12, 16) if samples // replicas % size == 0]
        zero_stages = (0, 1) if replicas > 1 else (recipe.optimizer.zero_stage,)
        for size, zero_stage, recomputation in itertools.product(sizes, zero_stages, RECOMPUTATION.values()):
            try:
                yield with_layout(
                    recipe,
                    tp=tp,
                    pp=pp,
                    dp=replicas,
                    context_parallel_size=cp,
                    layers_per_stage=None,
                    **recomputation,
                    micro_batch_size=size,
                    batch_accumulation_per_replica=samples // replicas // size,
                    zero_stage=zero_stage,
                )
            except RecipeError:
                continue


def _largest_cp(recipe: Recipe) -> int:
    """Splitting a sample pays for long windows only: a rank keeps at least 4,096 of its tokens."""
    return max(recipe.tokens.sequence_length // 4096, recipe.parallelism.context_parallel_size)
