"""Train a recipe as the run `straight`; then as `stopped`, which somebody ends with a signal, and on to its end: under
one torchrun. Each rank leaves its process id and how the stopped run ended in the runs folder, as rank-<n>.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from posttrain.recipe import load_recipe
from posttrain.stopping import StopRequest
from posttrain.training import train

path, *overrides = sys.argv[1:]
train(load_recipe(path, [*overrides, "general.run=straight"]))
recipe = load_recipe(path, [*overrides, "general.run=stopped"])
file = Path(recipe.general.runs_path, f"rank-{os.environ['RANK']}")
file.with_suffix(".pid").write_text(str(os.getpid()))
outcome = train(recipe, StopRequest())
file.with_suffix(".json").write_text(json.dumps(dataclasses.asdict(outcome)))
train(recipe, StopRequest())
