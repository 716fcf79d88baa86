"""Scores of a model folder, through the evaluation's command line and its result files."""

import importlib
import json
from pathlib import Path

from merge.checkpoint import MergeError
from merge.recipe import Evaluation


def suite_scores(model: Path, name: str, evaluation: Evaluation, output: Path) -> dict[str, dict[str, float]]:
    """Do what `python -m eval` does for the suites; {"suite/task": {"value": ..., "stderr": ...}} of the main metrics.

    In this process: the libraries take longer to import than a small model to evaluate. Finished tasks of the same
    model are not repeated: the evaluation resumes by itself.

    Raises:
        MergeError: if the evaluation fails.
    """
    arguments = [evaluation.recipe, "--model", str(model), "--name", name]
    arguments += [*(f"--suite={suite}" for suite in evaluation.suites), f"output={output}"]
    # By name: an import statement would make every merge depend on the evaluation's code (foundation/code.py).
    if importlib.import_module("eval.__main__").main(arguments) != 0:
        raise MergeError(f"The evaluation of {model} failed (command: python -m eval {' '.join(arguments)}).")
    scores: dict[str, dict[str, float]] = {}
    for suite in evaluation.suites:
        result = json.loads((output / name / f"{suite}.json").read_text(encoding="utf-8"))
        for task in result["tasks"]:
            main = next(metric for metric in task["metrics"] if metric["main"])
            scores[f"{suite}/{task['task']}"] = {"value": main["value"], "stderr": main["stderr"] or 0.0}
    return scores


def evaluation_sha256(evaluation: Evaluation) -> str:
    """Of all that the suites' scores depend on beside the model: recipe, data, code and package versions.

    Raises:
        UserError: for a recipe, suite or data that cannot be read.
    """
    recipe = importlib.import_module("eval.recipe").load_eval_recipe(evaluation.recipe)
    return str(importlib.import_module("eval.fingerprint").suites_sha256(recipe, evaluation.suites))


def mean_score(scores: dict[str, dict[str, float]]) -> float:
    return sum(score["value"] for score in scores.values()) / len(scores)
