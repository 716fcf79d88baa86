"""Join a checkpoint's evaluation to its run: `smollm3 eval-checkpoint <run>/evaluations/<step> --model FOLDER`.

Reads <folder>/results, writes <run>/evaluations.jsonl (one object per evaluated step, as metrics.jsonl has one per
trained step) and <folder>/scores.json, logs to wandb under the same step, and removes the copies of the weights. In
wandb the evaluations are a run of their own in the group of the training run, so that neither waits for the other.
"""

import json
import shutil
from pathlib import Path

from eval.errors import EvalError
from eval.results import read_suite
from foundation.files import write_atomically
from foundation.journal import read_rows
from foundation.recipe import Recipe, load_recipe
from foundation.wandb_run import Wandb, wandb_mode

EVALUATIONS_FILE = "evaluations.jsonl"


def read_scores(results: Path) -> dict[str, float]:
    """`evaluation/<suite>/<task>` -> main metric, over all suites of a results folder.

    Raises:
        EvalError: when there is no result.
    """
    suites = [read_suite(file) for file in sorted(results.glob("*/*.json"))]
    scores = {
        f"evaluation/{suite.suite}/{task.task}": task.main_metric.value for suite in suites for task in suite.tasks
    }
    if not scores:
        raise EvalError(f"There is no result in {results}. Run smollm3 eval with output={results} first.")
    return scores


def join(run_folder: Path, step: int, scores: dict[str, float]) -> None:
    """Set the step's row in evaluations.jsonl; rows stay in the order of steps."""
    file = run_folder / EVALUATIONS_FILE
    rows = {row["step"]: row for row in read_rows(file)} | {step: {"step": step, **scores}}
    write_atomically(file, "".join(json.dumps(rows[key]) + "\n" for key in sorted(rows)))


def log_to_wandb(recipe: Recipe, step: int, scores: dict[str, float]) -> None:
    """Under `step` of the run `<training run>-evaluation`. Jobs run in the order of steps, which wandb insists on.

    Raises:
        TrackingError: when the recipe wants wandb online and it is not.
    """
    run = Wandb(recipe, wandb_mode(recipe), last_step_kept=None)
    run.log({"step": step, **scores})
    run.close()


def join_checkpoint(folder: Path, model: Path) -> None:
    """Join the results in `folder`, <run>/evaluations/<step>, to their run, and remove the exported `model`.

    Raises:
        EvalError: `folder` is no such folder, or holds no result; the weights are kept.
        TrackingError: see `log_to_wandb`.
    """
    if not folder.name.isdigit() or folder.parent.name != "evaluations":
        raise EvalError(f"{folder} is not the folder of a checkpoint's evaluation, RUN_FOLDER/evaluations/STEP.")
    step, run_folder = int(folder.name), folder.parent.parent
    scores = read_scores(folder / "results")
    join(run_folder, step, scores)
    log_to_wandb(load_recipe(run_folder / "recipe.yaml"), step, scores)
    for weights in (model, folder / "checkpoint"):
        shutil.rmtree(weights, ignore_errors=True)
    (folder / "scores.json").write_text(json.dumps({"step": step, **scores}, indent=1) + "\n", encoding="utf-8")
