"""The planner's one calibrated constant, from a step that `bench/step.py --device cuda --json` measured on one GPU.

The factor is the measured time over the sum of the kernels that the planner expects of the same step. It then stands on
every part of the planned step, messages included, so whatever the one GPU could not show is stretched alike.
"""

import dataclasses
import json
import statistics
from pathlib import Path

from foundation.errors import UserError
from foundation.recipe import Recipe
from nanotron_ext.plan.speed import Machine, step_time

VARIANT = "this trainer"


def calibrated(machine: Machine, path: Path, recipe: Recipe) -> Machine:
    """The machine with the overhead of the measured step of the recipe's architecture.

    Raises:
        UserError: when the file cannot be read, or holds no step of this architecture.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"].values()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--measured {path}: not a result of bench/step.py --json ({error}).") from None
    parameters = recipe.architecture.num_parameters()
    for result in results:
        measured, seconds = Recipe.model_validate(result["recipe"]), result["variants"][VARIANT].get("seconds")
        if measured.architecture.num_parameters() == parameters and seconds:
            alone = dataclasses.replace(machine, overhead=1.0)
            expected = step_time(measured, alone, result["document_tokens"]).total
            return dataclasses.replace(machine, overhead=statistics.median(seconds) / expected)
    raise UserError(
        f"--measured {path}: holds no step of {parameters:,} parameters, as the recipe's model has. Measure it with "
        f"`python bench/step.py --device cuda --sizes ... --json {path}`."
    )
