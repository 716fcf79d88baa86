"""Compare two recipes key by key.

They are recipes of any phase, or configurations in nanotron's own schema, whose keys and names of sources are
translated: what SmolLM3's team published, for example. Values that only one side has come after those that differ.
"""

import json
from pathlib import Path
from typing import Any

from check.loaders import loader_for
from datapipes.registry import load_registry
from foundation.recipe import compare
from foundation.recipe.compare import ABSENT, Difference
from foundation.recipe.loading import read_tree


def differences(left: Path, right: Path) -> list[Difference]:
    """Raises UserError when a file is neither a recipe nor nanotron's configuration."""
    return compare.differences(resolved(left), resolved(right))


def resolved(path: Path) -> compare.Tree:
    """All keys of a recipe with bases, variables and defaults, or of a nanotron configuration under our names.

    Raises:
        UserError: when the file is neither.
    """
    tree = read_tree(path)
    if compare.is_nanotron(tree):
        return compare.from_nanotron(tree, _source_name)
    recipe: Any = loader_for(path)(path)
    dumped: compare.Tree = recipe.model_dump(mode="json", by_alias=True)
    return dumped


def _source_name(published: str) -> str:
    """Our name of a source that a published mixture calls so; its own where we have none."""
    names = {name: source.name for source in load_registry().values() for name in source.published_as}
    return names.get(published, published)


def as_text(left: Path, right: Path, found: list[Difference]) -> str:
    if not found:
        return f"{left} and {right} say the same."
    differ = [difference for difference in found if ABSENT not in (difference.left, difference.right)]
    lines = [f"{len(differ)} keys differ between A = {left} and B = {right}"] if differ else []
    lines += [f"  {one.key}\n    A {_text(one.left)}\n    B {_text(one.right)}" for one in differ]
    for name, side in (("A", "left"), ("B", "right")):
        only = [
            (one.key, getattr(one, side)) for one in found if one not in differ and getattr(one, side) is not ABSENT
        ]
        if only:
            lines += [f"only in {name}: {len(only)} keys", *(f"  {key}: {_text(value)}" for key, value in only)]
    return "\n".join(lines)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def as_json(difference: Difference) -> dict[str, Any]:
    sides = {"left": difference.left, "right": difference.right}
    return {"key": difference.key, **{side: value for side, value in sides.items() if value is not ABSENT}}
