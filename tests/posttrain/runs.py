"""Short runs of the tiny recipes, for the tests that train."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from posttrain.recipe import PostTrainingRecipe, load_recipe

SIZES = {"midtrain": 60, "sft": 12, "apo": 16, "heldout": 2}
FAST = ["wandb.mode=disabled", "data.max_length=512", "optimizer.num_train_epochs=2", "data.max_lost_fraction=0.5"]


def recipe(phase: str, *overrides: str) -> PostTrainingRecipe:
    return load_recipe(f"recipes/tiny/{phase}.yaml", [*FAST, *overrides])


def from_base(run: Path) -> str:
    return f"model.model_name_or_path={run / 'hf' / 'long_context_64k'}"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def metrics_of(file: Path) -> list[dict[str, Any]]:
    """The complete lines."""
    lines = file.read_text().split("\n")[:-1] if file.is_file() else []
    return [json.loads(line) for line in lines]


def assert_same_training(run_folder: Path, other: Path) -> None:
    """The same steps, bit for bit; only times may differ."""
    rows, wanted = (metrics_of(folder / "metrics.jsonl") for folder in (run_folder, other))
    times = {"tokens_per_second"}
    assert [{k: row[k] for k in row.keys() - times} for row in rows] == [
        {k: row[k] for k in row.keys() - times} for row in wanted
    ]
    ours, theirs = (weights(folder.parent / "hf" / folder.name) for folder in (run_folder, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
