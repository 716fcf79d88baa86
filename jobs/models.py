"""Plans of the jobs that merge, evaluate and report on models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import BENCHMARKS
from eval.fingerprint import LEFT_OUT, suite_code, suite_values
from eval.recipe import EvalRecipe, Suite, load_eval_recipe
from jobs.plan import Folders, Job, JobError, Plan
from jobs.training import base_models, generated_sets, model_input
from merge.recipe import MergeRecipe, load_merge_recipe
from posttrain.recipe import load_recipe as load_post_training_recipe


def merge(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    path = folders.recipe(job.recipe)
    recipe = load_merge_recipe(path, overrides)
    inputs = [Path(ingredient.path) for ingredient in recipe.soup.checkpoints]
    inputs += [Path(recipe.linear.mid_training)] if recipe.linear else []
    models = _merged(recipe)
    suites: dict[str, Any] = {}
    if recipe.soup.method == "greedy" and recipe.evaluation is not None:  # scores choose the members
        suites = _depends_on(load_eval_recipe(recipe.evaluation.recipe), recipe.evaluation.suites)
    return Plan(
        job, path, folders.run / "slurm" / job.name, (("merge", *folders.option),),
        tuple(model / "config.json" for model in inputs), tuple(model / "config.json" for model in models), models,
        recipes=(path,), **suites,
    )  # fmt: skip


def _merged(recipe: MergeRecipe) -> tuple[Path, ...]:
    return (Path(recipe.soup.output), *([Path(recipe.linear.output)] if recipe.linear else []))


def has_sweep(folders: Folders) -> bool:
    return folders.has("merge") and load_merge_recipe(folders.recipe("merge")).sweep is not None


def merge_sweep(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    path = folders.recipe(job.recipe)
    recipe = load_merge_recipe(path, overrides)
    assert recipe.sweep is not None and recipe.evaluation is not None and recipe.linear is not None
    inputs = (Path(recipe.soup.output), Path(recipe.linear.mid_training))
    return Plan(
        job, path, folders.run / "slurm" / job.name, (("merge-sweep", *folders.option),),
        tuple(model / "config.json" for model in inputs), (Path(recipe.sweep.output) / "sweep.json",),
        recipes=(path,), **_depends_on(load_eval_recipe(recipe.evaluation.recipe), recipe.evaluation.suites),
    )  # fmt: skip


def _depends_on(recipe: EvalRecipe, suites: Sequence[str]) -> dict[str, Any]:
    """What scores of the `suites` depend on, as fields of a Plan."""
    known = [suite for suite in suites if suite in recipe.suites]  # others are refused by the evaluation
    return {
        "settings": suite_values(recipe, known), "code": suite_code(recipe, known), "code_left_out": LEFT_OUT
    }  # fmt: skip


def _post_trained(folders: Folders) -> list[Path]:
    return [load_post_training_recipe(folders.recipe(phase)).model_folder for phase in folders.post_training]


def all_models(folders: Folders) -> list[Path]:
    """Every transformers folder that the chain writes, in order; of several seeds the first one's."""
    models = [model for _, model in base_models(folders)] + _post_trained(folders)
    return models + list(_merged(load_merge_recipe(folders.recipe("merge"))) if folders.has("merge") else ())


def evaluate_last(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """The last model of all on all suites."""
    talks = bool(folders.post_training or folders.model)
    return _one_model(folders, job, overrides, all_models(folders), talks=talks)


def evaluate_base(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """The last model of pretraining, on the suites that do not talk to it."""
    return _one_model(folders, job, overrides, [model for _, model in base_models(folders)], talks=False)


def _one_model(folders: Folders, job: Job, overrides: Sequence[str], models: Sequence[Path], *, talks: bool) -> Plan:
    path = folders.recipe(job.recipe)
    recipe = load_eval_recipe(path, overrides)
    if not models and folders.model is None:
        raise JobError(f"{folders.recipes} has no recipe that makes a model. Say which one to evaluate: MODEL=FOLDER.")
    model = folders.model or models[-1]
    fitting = [name for name, suite in recipe.suites.items() if _can_run(recipe, suite, talks=talks)]
    suites = folders.suites or tuple(fitting)
    unknown = [suite for suite in suites if suite not in recipe.suites]
    if unknown:
        raise JobError(f"There is no suite {unknown[0]!r} in {path}; it has {', '.join(recipe.suites)}.")
    return _evaluation(folders, job, recipe, [model], suites)


def _can_run(recipe: EvalRecipe, suite: Suite, *, talks: bool) -> bool:
    executes = any(BENCHMARKS[task.benchmark or key].executes_code for key, task in suite.tasks.items())
    return (talks or not suite.needs_chat_template) and (recipe.execute_code or not executes)


def has_long_suite(folders: Folders) -> bool:
    return folders.has("eval") and "long" in load_eval_recipe(folders.recipe("eval")).suites


def evaluate_long(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """Retrieval on every model that may have changed it: by longer windows, by preference training, by the merge."""
    recipe = load_eval_recipe(folders.recipe(job.recipe), overrides)
    phases = sum(name.startswith("long_context") for name in folders.pretraining)
    base, post = [model for _, model in base_models(folders)], _post_trained(folders)
    merged = all_models(folders)[len(base) + len(post) :]
    return _evaluation(folders, job, recipe, [*base[-1 - phases :], *post[-1:], *merged], ("long",))


def _evaluation(folders: Folders, job: Job, recipe: EvalRecipe, models: Sequence[Path], suites: Sequence[str]) -> Plan:
    name = f"{job.name}-{models[0].name}" if len(models) == 1 else job.name
    inputs, export_from = model_input(folders, models[0]) if len(models) == 1 else (_configs(models), None)
    chosen = [word for suite in suites if len(suites) < len(recipe.suites) for word in ("--suite", suite)]
    named = [word for model in models for word in ("--model", str(model))]
    return Plan(
        job, folders.recipe(job.recipe), folders.run / "slurm" / name, (("eval", *folders.option, *named, *chosen),),
        (*inputs, Path(recipe.data)),
        tuple(Path(recipe.output) / model.name / f"{suite}.json" for model in models for suite in suites),
        model=models[0] if len(models) == 1 else None, export_from=export_from, suites=tuple(suites),
        **_depends_on(recipe, suites),
    )  # fmt: skip


def _configs(models: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(model / "config.json" for model in models)


def evaluate_checkpoint(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """One checkpoint of a run that still trains, in a folder of slurm/checkpoint_evaluations.py."""
    path = folders.recipe(job.recipe)
    recipe = load_eval_recipe(path, overrides)
    folder = folders.checkpoint
    if recipe.checkpoints is None or folder is None:
        raise JobError(f"{job.name} is submitted by training jobs, as the section checkpoints of {path} says.")
    return Plan(
        job, path, folder, (), (folder / "checkpoint" / "checkpoint.json", Path(recipe.data)),
        (folder / "scores.json",), model=folder / f"{folder.parent.parent.name}-{folder.name}",
        suites=tuple(recipe.checkpoints.suites),
    )  # fmt: skip


def teaches(folders: Folders) -> bool:
    """Whether post-training has held-out prompts of what it taught, as the miniature writes them."""
    return any(generated_sets(folders, phase) for phase in folders.post_training)


def capabilities(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """The taught tasks in both modes, before and after each phase of post-training."""
    models, before = all_models(folders), len(folders.pretraining)
    asked = models[max(0, before - 1) :]
    made = folders.run / "eval" / "capabilities.json"
    return Plan(
        job, folders.recipe(job.recipe), folders.run / "slurm" / job.name,
        (("capabilities", *map(str, asked), "--seeds", "1", *folders.option),), _configs(asked), (made,), (made,),
    )  # fmt: skip


def report(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """It reads whatever the run folder holds, and is to come after everything else."""
    made = folders.run / "report"
    return Plan(
        job, folders.recipe(job.recipe), folders.run / "slurm" / job.name, (("report", *folders.option),), (),
        (made / "index.html",), (made,),
    )  # fmt: skip
