"""The soup, then the linear merge with the mid-training checkpoint."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from merge.average import Average, write_average
from merge.checkpoint import Checkpoint
from merge.recipe import MergeRecipe
from merge.scores import Scorer, mean_score
from merge.soup import choose_parent, find_checkpoints, greedy_selection


def run(recipe: MergeRecipe, scorer: Scorer) -> None:
    """Write the soup and, if the recipe has the section, the linear merge. `scorer` is asked by a greedy soup alone.

    Raises:
        MergeError: see `write_average`.
        UserError: the scorer's.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if recipe.linear is not None:
        _check_linear_inputs(recipe)
    average = plan_soup(recipe, scorer)
    output = Path(recipe.soup.output)
    _report("soup", write_average(average, output, "soup"), output)
    if recipe.linear is not None:
        output = Path(recipe.linear.output)
        _report("linear", write_average(plan_linear(recipe, recipe.linear.soup_weight), output, "linear"), output)


def plan_soup(recipe: MergeRecipe, scorer: Scorer) -> Average:
    """The soup of the recipe; a greedy one evaluates its candidates here and logs the trials beside its output."""
    checkpoints, weights = find_checkpoints(recipe.soup)
    parent = choose_parent(recipe.soup.parent, checkpoints)
    if recipe.soup.method == "greedy":
        # Before the hours of evaluation that choose the members.
        Average(checkpoints, weights, parent, recipe.dtype, recipe.max_shard_bytes).check(Path(recipe.soup.output))
        checkpoints = _select_greedily(recipe, checkpoints, scorer)
        weights = [1 / len(checkpoints)] * len(checkpoints)
        if recipe.soup.parent is None or parent not in checkpoints:
            parent = checkpoints[0]
    return Average(checkpoints, weights, parent, recipe.dtype, recipe.max_shard_bytes)


def plan_linear(recipe: MergeRecipe, soup_weight: float) -> Average:
    assert recipe.linear is not None
    soup, mid_training = Checkpoint(recipe.soup.output), Checkpoint(recipe.linear.mid_training)
    weights = [soup_weight, 1 - soup_weight]
    return Average([soup, mid_training], weights, soup, recipe.dtype, recipe.max_shard_bytes)


def _select_greedily(recipe: MergeRecipe, checkpoints: list[Checkpoint], scorer: Scorer) -> list[Checkpoint]:
    evaluation = recipe.evaluation
    assert evaluation is not None
    scratch = Path(recipe.soup.output + ".greedy")

    def score(model: Path) -> float:
        name = f"{model.parent.name}-{model.name}"
        return mean_score(scorer(model, name, evaluation, scratch / "eval"))

    def write_soup(chosen: Sequence[Checkpoint]) -> Path:
        output = scratch / f"soup-{'+'.join(checkpoint.path.name for checkpoint in chosen)}"
        weights = [1 / len(chosen)] * len(chosen)
        write_average(Average(chosen, weights, chosen[0], recipe.dtype, recipe.max_shard_bytes), output, "greedy trial")
        return output

    chosen, log = greedy_selection(checkpoints, score, write_soup)
    scratch.mkdir(parents=True, exist_ok=True)
    for trial in scratch.glob("soup-*"):  # as large as the models; their scores stay in scratch / "eval"
        shutil.rmtree(trial)
    (scratch / "selection.json").write_text(json.dumps(log, indent=2) + "\n", encoding="utf-8")
    print(f"greedy soup: {len(chosen)} of {len(checkpoints)} checkpoints kept (trials: {scratch / 'selection.json'})")
    return chosen


def _check_linear_inputs(recipe: MergeRecipe) -> None:
    """The mid-training checkpoint against a soup ingredient, before the soup is computed."""
    assert recipe.linear is not None
    ingredients, _ = find_checkpoints(recipe.soup)
    mid_training = Checkpoint(recipe.linear.mid_training)
    weights = [recipe.linear.soup_weight, 1 - recipe.linear.soup_weight]
    average = Average([ingredients[0], mid_training], weights, ingredients[0], recipe.dtype, recipe.max_shard_bytes)
    average.check(Path(recipe.linear.output))


def dry_run(recipe: MergeRecipe) -> None:
    """Check inputs, weights and disk space, and print what would be averaged.

    Raises:
        MergeError: see `write_average`.
    """
    checkpoints, weights = find_checkpoints(recipe.soup)
    parent = choose_parent(recipe.soup.parent, checkpoints)
    Average(checkpoints, weights, parent, recipe.dtype, recipe.max_shard_bytes).check(Path(recipe.soup.output))
    if recipe.linear is not None:
        _check_linear_inputs(recipe)
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        share = "chosen by greedy selection" if recipe.soup.method == "greedy" else f"{weight:.4f}"
        print(f"soup    {share}  {checkpoint.path}{'  (parent)' if checkpoint is parent else ''}")
    if recipe.linear is not None:
        print(f"linear  {recipe.linear.soup_weight:.4f}  {recipe.soup.output}  (parent)")
        print(f"linear  {1 - recipe.linear.soup_weight:.4f}  {recipe.linear.mid_training}")


def _report(stage: str, manifest: dict[str, object], output: Path) -> None:
    verification = manifest["verification"]
    assert isinstance(verification, dict)
    print(
        f"{stage}: {output} verified, {verification['tensors']} tensors, {verification['elements']:,} elements "
        f"within {verification['max_rounding_error']:.2f} roundings of the float64 average"
    )
