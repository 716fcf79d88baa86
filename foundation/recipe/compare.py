"""What differs between two recipes, key by key; either may be a published configuration in nanotron's own schema."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Tree = dict[str, Any]

ABSENT = object()

# nanotron's key -> ours, where they are not spelled alike. A key that is not here keeps its name.
NANOTRON_KEYS = {
    "model.model_config._use_doc_masking": "model.model_config.document_mask",
    "model.model_config.no_rope_layer": "model.model_config.no_rope_layer_interval",
    "optimizer.optimizer_factory.adam_beta1": "optimizer.adam_beta1",
    "optimizer.optimizer_factory.adam_beta2": "optimizer.adam_beta2",
    "optimizer.optimizer_factory.adam_eps": "optimizer.adam_eps",
    "optimizer.optimizer_factory.torch_adam_is_fused": "optimizer.torch_adam_is_fused",
    "checkpoints.checkpoints_path": "general.runs_path",
}


@dataclass(frozen=True)
class Difference:
    """A key with its two values; `ABSENT` where one side does not have it."""

    key: str
    left: Any
    right: Any


def differences(left: Tree, right: Tree) -> list[Difference]:
    """Leaves that are not equal, in the order of the left tree, then those that only the right one has."""
    a, b = leaves(left), leaves(right)
    keys = [*a, *(key for key in b if key not in a)]
    pairs = ((key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in keys)
    return [Difference(key, one, other) for key, one, other in pairs if one != other]


def leaves(tree: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> value; entries of lists of mappings are numbered, other lists are values."""
    if isinstance(tree, list) and tree and all(isinstance(item, dict) for item in tree):
        tree = {str(number): item for number, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return {key: tree}
    return {
        name: value
        for part, child in tree.items()
        for name, value in leaves(child, f"{key}.{part}" if key else part).items()
    }


def is_nanotron(tree: Tree) -> bool:
    """Whether the tree has nanotron's shape: its mixtures are lists of folders below `data`."""
    stages = tree.get("data_stages")
    has_nested_data = isinstance(stages, list) and any(isinstance(stage, dict) and "data" in stage for stage in stages)
    return has_nested_data or "optimizer_factory" in (tree.get("optimizer") or {})


def from_nanotron(tree: Tree, source_name: Callable[[str], str]) -> Tree:
    """A nanotron configuration with our keys. `source_name` gives our name of a source that a folder is named after."""
    ours: Tree = {}
    stages = tree.get("data_stages") or []
    for key, value in leaves({name: section for name, section in tree.items() if name != "data_stages"}).items():
        target, *path = reversed(NANOTRON_KEYS.get(key, key).split("."))
        section = ours
        for part in reversed(path):
            section = section.setdefault(part, {})
        section[target] = value
    architecture = ours.get("model", {}).get("model_config", {})
    if "no_rope_layer_interval" in architecture:
        architecture["no_rope_layer_interval"] = architecture["no_rope_layer_interval"] or 0
    ours["data_stages"] = [_stage(stage, source_name) for stage in stages]
    seeds = {stage["data"]["seed"] for stage in stages if "seed" in stage.get("data", {})}
    if len(seeds) == 1:
        ours["data"] = {"seed": seeds.pop()}
    return ours


def _stage(stage: Tree, source_name: Callable[[str], str]) -> Tree:
    dataset = (stage.get("data") or {}).get("dataset") or {}
    # Where both are given, the path that is read says which source it is; the other may be a copy of any name.
    folders = dataset.get("dataset_read_path") or dataset.get("dataset_folder") or []
    weights = dataset.get("dataset_weights") or []
    mixture: dict[str, float] = {}
    for folder, weight in zip(folders, weights, strict=False):
        name = source_name(next(part for part in reversed(Path(folder).parts) if part != "tokenized"))
        mixture[name] = mixture.get(name, 0.0) + weight
    return {"name": stage.get("name"), "start_training_step": stage.get("start_training_step"), "mixture": mixture}
