"""Scores over the share of the soup, as JSON and plot, to justify the weight."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from foundation.charts import Series, line_chart
from merge.average import write_average
from merge.checkpoint import MergeError
from merge.recipe import MergeRecipe
from merge.run import plan_linear
from merge.scores import Scorer, mean_score


def run_sweep(recipe: MergeRecipe, scorer: Scorer, scored_with: str) -> None:
    """Merge, score and delete one model per weight; finished weights are kept in sweep.json and not repeated.

    `scored_with` stands for all that the scorer's scores depend on beside the model: those of another one are not kept.

    Raises:
        MergeError: the recipe has no section sweep; see also `write_average`.
        UserError: the scorer's.
    """
    if recipe.sweep is None:
        raise MergeError("The recipe has no section sweep (soup_weights, output).")
    assert recipe.evaluation is not None
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    output = Path(recipe.sweep.output)
    output.mkdir(parents=True, exist_ok=True)
    weights = sorted(recipe.sweep.soup_weights)
    inputs = plan_linear(recipe, weights[0]).identity()["inputs"]
    settings = {
        "inputs": [{"path": entry["path"], "sha256": entry["sha256"]} for entry in inputs],
        "suites": recipe.evaluation.suites,
        "evaluation": scored_with,
        "dtype": recipe.dtype,
    }
    rows = _finished_rows(output / "sweep.json", settings)
    started = time.monotonic()
    todo = [weight for weight in weights if weight not in {row["soup_weight"] for row in rows}]
    for done, weight in enumerate(todo):
        model = output / f"soup-{weight:.3f}"
        shutil.rmtree(model, ignore_errors=True)
        write_average(plan_linear(recipe, weight), model, "sweep", quiet=True)
        scores = scorer(model, model.name, recipe.evaluation, output / "eval")
        shutil.rmtree(model)
        rows.append({"soup_weight": weight, "mean": mean_score(scores), "scores": scores})
        _write_results(output, settings, sorted(rows, key=lambda row: float(row["soup_weight"])))
        left = (time.monotonic() - started) / (done + 1) * (len(todo) - done - 1)
        print(f"sweep: soup weight {weight:g}, mean score {rows[-1]['mean']:.4f}, {left:.0f} s left", flush=True)
    print(f"sweep: {output / 'sweep.json'} and {output / 'sweep.svg'}")


def _finished_rows(file: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    document = json.loads(file.read_text(encoding="utf-8"))
    if document["settings"] == settings:
        rows: list[dict[str, Any]] = document["rows"]
        return rows
    digest = hashlib.sha256(json.dumps(document["settings"], sort_keys=True).encode()).hexdigest()
    aside = file.with_name(f"sweep-{digest[:8]}.json")
    file.replace(aside)
    print(f"The sweep so far is of other models, suites or code; its scores stay in {aside}.", flush=True)
    return []


def _write_results(output: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    best = max(rows, key=lambda row: float(row["mean"]))
    document = {"format": "merge-sweep/1", "settings": settings, "best_soup_weight": best["soup_weight"], "rows": rows}
    partial = output / "sweep.json.partial"
    partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    partial.replace(output / "sweep.json")
    weights = [row["soup_weight"] for row in rows]
    curves = [Series("mean", weights, [row["mean"] for row in rows], marks=True)]
    for task in rows[0]["scores"]:
        scores = [row["scores"][task] for row in rows]
        curves.append(Series(task, weights, [s["value"] for s in scores], [s["stderr"] for s in scores], marks=True))
    chart = line_chart(curves, "share of the soup", "score", on_white=True)
    (output / "sweep.svg").write_text(chart, encoding="utf-8")
