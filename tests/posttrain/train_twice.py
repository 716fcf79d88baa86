"""Train a recipe, lose everything after its last checkpoint but one, and train it again, under one torchrun.

The first model and its metrics stay beside the second's as <name>-first.
"""

import shutil
import sys

import torch

from posttrain.recipe import load_recipe
from posttrain.training import last_checkpoint, train

recipe = load_recipe(sys.argv[1], sys.argv[2:])
train(recipe)
if torch.distributed.get_rank() == 0:
    shutil.rmtree(last_checkpoint(recipe))
    recipe.model_folder.rename(recipe.model_folder.with_name(f"{recipe.model_folder.name}-first"))
    metrics = recipe.run_folder / "metrics.jsonl"
    shutil.copy(metrics, metrics.with_name("metrics-first.jsonl"))
torch.distributed.barrier()
train(recipe)
