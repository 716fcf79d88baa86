"""Plans of the jobs that make data and train on it, and of the export that ends pretraining."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.project import ROOT
from foundation.recipe import Recipe, load_recipe
from foundation.recipe.loading import read_tree
from jobs.plan import Folders, Job, Plan, TrainingRun

if TYPE_CHECKING:
    from eval.recipe import CheckpointSuites

_SOURCE_TABLES = "datapipes/sources"


def data(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """Shards of all sources, and what post-training and evaluation read from the run folder itself."""
    path, run = folders.recipe(job.recipe), folders.run
    recipe = load_recipe(path, overrides)
    phases = [folders.recipe(name) for name in folders.pretraining if name.startswith("long_context")]
    recipes = [recipe, *(load_recipe(phase, overrides) for phase in phases)]
    products = list(dict.fromkeys(manifest for one in recipes for manifest in shard_manifests(one)))
    if recipe.tokenizer.train is not None:
        products.append(Path(recipe.tokenizer.tokenizer_name_or_path) / "tokenizer.json")
    made = [one for phase in folders.post_training for one in generated_sets(folders, phase)]
    commands: list[tuple[str, ...]] = [("data", *folders.option)]
    outputs, used = [run / "data", run / "tokenizer"], [path]
    if made:  # as the miniature has; others read theirs from the hub, or have made them with `smollm3 synthesize`
        commands.append(("posttrain-data", *folders.option))
        outputs.append(folders.posttrain_data)
    if folders.has("eval"):
        from eval.recipe import load_eval_recipe

        edition = ("--edition", "small" if made else "full")
        commands.append(("eval-data", *folders.option, *edition))
        outputs.append(run / "eval_data")
        used.append(folders.recipe("eval"))
        made.append(Path(load_eval_recipe(folders.recipe("eval")).data))
    sources = {source for one in recipes for source in _sources(one)}
    return Plan(
        job, path, run / "slurm" / job.name, tuple(commands), (), (*products, *made), tuple(outputs),
        recipes=tuple(used), settings=sorted(sources), code=_source_tables(sources),
    )  # fmt: skip


def sets_of_the_run(folders: Folders, phase: str) -> list[Path]:
    """The sets of a phase of post-training that lie in the run folder, not on the hub."""
    from posttrain.recipe import load_recipe as load_post_training_recipe

    recipe = load_post_training_recipe(folders.recipe(phase))
    paths = [Path(dataset.path) for dataset in recipe.data.datasets]
    return [path for path in paths if path.is_relative_to(folders.run)]


def generated_sets(folders: Folders, phase: str) -> list[Path]:
    """Those of the phase's sets that the data job writes itself."""
    return [path for path in sets_of_the_run(folders, phase) if path.is_relative_to(folders.posttrain_data)]


def _sources(recipe: Recipe) -> dict[str, None]:
    """What the stages train on, and what is held out, in order."""
    mixtures = [source for stage in recipe.data_stages for source in stage.mixture]
    return dict.fromkeys([*mixtures, *recipe.data.validation])


def _source_tables(sources: set[str]) -> tuple[str, ...]:
    tables = sorted((ROOT / _SOURCE_TABLES).glob("*.yaml"))
    return tuple(f"{_SOURCE_TABLES}/{table.name}" for table in tables if sources & set(read_tree(table)))


def shard_manifests(recipe: Recipe) -> tuple[Path, ...]:
    return tuple(Path(recipe.data.path) / source / "manifest.json" for source in _sources(recipe))


def predict(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """The three stages, whose layouts differ; it runs first, as people would."""
    stages = [name for name in folders.pretraining if name.startswith("pretrain")]
    made = folders.run / "plan"
    return Plan(
        job, folders.recipe(job.recipe), folders.run / "slurm" / job.name,
        (("plan", *folders.option, "--out", str(made)),), (),
        tuple(made / f"{stage}.json" for stage in stages), (made,),
        recipes=tuple(folders.recipe(stage) for stage in stages),
    )  # fmt: skip


def pretrain(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    path = folders.recipe(job.recipe)
    recipe = load_recipe(path, overrides)
    folder, inputs = recipe.run_folder, shard_manifests(recipe)
    start = recipe.checkpoints.resume_checkpoint_path or recipe.checkpoints.load_weights_path
    if start is not None and not list((folder / "checkpoints").glob("*/checkpoint.json")):
        inputs += (_start(folders, job.name, Path(start)),)
    return Plan(
        job, path, folder, (("train", str(path)),), inputs, (last_checkpoint(recipe),), (folder,),
        recipes=(path,), runs=(TrainingRun(folder, last_step=recipe.last_step),),
        world_size=recipe.parallelism.world_size, checkpoint_suites=_checkpoint_suites(folders),
    )  # fmt: skip


def last_checkpoint(recipe: Recipe) -> Path:
    return recipe.run_folder / "checkpoints" / str(recipe.last_step) / "checkpoint.json"


def _checkpoint_suites(folders: Folders) -> "CheckpointSuites | None":
    from eval.recipe import load_eval_recipe

    return load_eval_recipe(folders.recipe("eval")).checkpoints if folders.has("eval") else None


def _start(folders: Folders, name: str, start: Path) -> Path:
    """The last checkpoint of the stage before, which a half-finished stage does not have; of any other run, some."""
    before = folders.pretraining[: folders.pretraining.index(name)][-1:] if folders.has(name) else ()
    for stage in before:
        recipe = load_recipe(folders.recipe(stage))
        if recipe.run_folder == start:
            return last_checkpoint(recipe)
    if (start / "checkpoint.json").is_file():
        return start / "checkpoint.json"
    return start / "checkpoints" / "*" / "checkpoint.json"


def base_models(folders: Folders) -> list[tuple[Recipe, Path]]:
    """Every pretraining recipe with the transformers folder that its run is exported to, <run>/hf/<the run's name>."""
    recipes = [load_recipe(folders.recipe(name)) for name in folders.pretraining]
    return [(recipe, folders.run / "hf" / recipe.general.run) for recipe in recipes]


def export(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """All stages' models, and their losses beside what baselines need per byte."""
    stages = base_models(folders)
    # Of this job's own models, which were moved aside where it runs anew: what is there is its interrupted work.
    commands = [("export", str(recipe.run_folder), str(model), "--replace") for recipe, model in stages]
    models, summary = [model for _, model in stages], folders.run / "eval" / "pretraining.json"
    return Plan(
        job, folders.recipe(job.recipe), folders.run / "slurm" / job.name,
        (*commands, ("summary", *folders.option)), tuple(last_checkpoint(recipe) for recipe, _ in stages),
        (*(model / "config.json" for model in models), summary), (*models, summary),
    )  # fmt: skip


def model_input(folders: Folders, model: Path) -> tuple[tuple[Path, ...], Path | None]:
    """What must exist for a job that reads a transformers folder, and the run to export it from if it is not there."""
    if (model / "config.json").is_file():
        return (), None
    for recipe, exported in base_models(folders):
        if exported == model:
            return (last_checkpoint(recipe),), recipe.run_folder
    is_hub_name = not model.is_absolute() and len(model.parts) == 2 and not model.parent.exists()
    return (() if is_hub_name else (model / "config.json",)), None


def post_train(folders: Folders, job: Job, overrides: Sequence[str]) -> Plan:
    """All recipes of the phase, apo.yaml and its other seeds apo_seed43.yaml, ..., whose models make the soup."""
    from posttrain.recipe import load_recipe as load_post_training_recipe

    path = folders.recipe(job.recipe)
    others = [other for other in sorted(path.parent.glob(f"{job.name}_*.yaml")) if other != path]
    recipe = load_post_training_recipe(path, overrides)
    trained = [recipe, *(load_post_training_recipe(other, overrides) for other in others)]
    model, optimizer = Path(recipe.model.model_name_or_path), recipe.optimizer
    inputs, export_from = model_input(folders, model)
    return Plan(
        job, path, recipe.run_folder, (("posttrain", *map(str, (path, *others))),),
        (*inputs, *sets_of_the_run(folders, job.name)), tuple(run.model_folder / "config.json" for run in trained),
        tuple(folder for run in trained for folder in (run.run_folder, run.model_folder)),
        recipes=(path, *others),
        runs=tuple(TrainingRun(run.run_folder, epochs=run.optimizer.num_train_epochs) for run in trained),
        micro_batches=optimizer.global_batch_size // optimizer.micro_batch_size, model=model, export_from=export_from,
    )  # fmt: skip
