"""The jobs of a profile: which recipe each one runs, what it needs, what it leaves behind.

A job is done when its products lie on disk, whoever made them; nothing else is remembered.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.errors import UserError
from foundation.recipe import Recipe, load_recipe

if TYPE_CHECKING:  # the rooms' recipes are read only for jobs that need them
    from eval.recipe import CheckpointSuites

SCRIPTS = Path("slurm")
DATA = "pretrain.yaml"  # the recipe whose mixtures the data job prepares, with those of the long-context phases
EVALUATION = "eval.yaml"


class JobError(UserError):
    """A job that cannot run as asked; nothing was submitted or started."""


@dataclass(frozen=True)
class Profile:
    """A folder of recipes, and the folder that its results go to."""

    recipes: Path
    run: Path

    @cached_property
    def jobs(self) -> tuple[str, ...]:
        """Names of the jobs that this profile has recipes for, in the order of the chain."""
        if not self.recipes.is_dir():
            raise JobError(f"There is no folder of recipes {self.recipes}. PROFILE names a folder of recipes/.")
        chain = {name: kind for name, kind in KINDS.items() if kind.in_chain}
        return tuple(name for name, kind in chain.items() if (self.recipes / kind.recipe(name)).is_file())

    def predecessor(self, name: str) -> str | None:
        """The job whose products `name` starts from."""
        if name == "eval_base":
            return self.pretraining[-1] if self.pretraining else None
        before = [job for job in self.jobs[: self.jobs.index(name)] if job != "eval_base"]
        return before[-1] if before else None

    def waits_for(self, name: str) -> tuple[str, ...]:
        """The jobs that have to succeed before `name` starts: its predecessor, and for the report all evaluations."""
        before = (self.predecessor(name), "eval_base" if name == "report" else None)
        return tuple(job for job in before if job in self.jobs)

    @cached_property
    def pretraining(self) -> tuple[str, ...]:
        return tuple(name for name in self.jobs if KINDS[name].plan is _pretraining)

    def plan(self, name: str, overrides: Sequence[str] = ()) -> "Plan":
        """Load the job's recipe.

        Raises:
            UserError: a RecipeError, or a JobError for an unknown job.
        """
        kind = kind_of(name)
        return kind.plan(self, name, self.recipes / kind.recipe(name), overrides)


@dataclass(frozen=True)
class Plan:
    """What a job does, in files."""

    recipe: Path
    folder: Path  # attempts.json, logs/, and for training runs metrics.jsonl and outcome.json
    inputs: tuple[Path, ...]  # files or patterns that must exist
    products: tuple[Path, ...]  # files that exist when the job is done
    world_size: int | None = None  # processes; None: one per GPU, or one
    micro_batches: int | None = None  # per step of post-training; the number of processes divides it
    last_step: int | None = None
    num_epochs: int | None = None  # of post-training, whose steps follow from its data
    runs: tuple[Path, ...] = ()  # folders of metrics.jsonl and checkpoints, if the job trains several recipes
    model: Path | None = None  # transformers folder that the job starts from
    export_from: Path | None = None  # run folder to export that model from first
    suites: tuple[str, ...] = ()
    checkpoint_suites: "CheckpointSuites | None" = None  # to evaluate checkpoints with while the job runs

    @property
    def is_done(self) -> bool:
        return all(product.exists() for product in self.products)

    @property
    def is_distributed(self) -> bool:
        """Whether torchrun starts it on all nodes, rather than a single command on one."""
        return self.world_size is not None or self.micro_batches is not None

    @property
    def missing_inputs(self) -> list[Path]:
        return [path for path in self.inputs if not _exists(path)]


@dataclass(frozen=True)
class Kind:
    plan: Callable[[Profile, str, Path, Sequence[str]], Plan]
    script: str = ""  # default: the job's name
    recipe_file: str = ""  # default: the job's name
    in_chain: bool = True

    def recipe(self, name: str) -> str:
        return self.recipe_file or f"{name}.yaml"


def _exists(path: Path) -> bool:
    if "*" not in str(path):
        return path.exists()
    anchor = Path(path.anchor or ".")
    return any(anchor.glob(str(path.relative_to(anchor) if path.is_absolute() else path)))


def _shard_manifests(recipe: Recipe) -> tuple[Path, ...]:
    mixtures = [source for stage in recipe.data_stages for source in stage.mixture]
    sources = dict.fromkeys([*mixtures, *recipe.data.validation])
    return tuple(Path(recipe.data.path) / source / "manifest.json" for source in sources)


def _data(profile: Profile, name: str, path: Path, overrides: Sequence[str]) -> Plan:
    """Shards of all sources, and what post-training and evaluation read from the run folder itself."""
    recipe = load_recipe(path, overrides)
    long_context = [profile.recipes / f"{job}.yaml" for job in profile.jobs if job.startswith("long_context")]
    recipes = [recipe, *(load_recipe(other, overrides) for other in long_context)]
    products = list(dict.fromkeys(manifest for recipe in recipes for manifest in _shard_manifests(recipe)))
    tokenizer = Path(recipe.tokenizer.tokenizer_name_or_path)
    if recipe.tokenizer.train is not None:
        products.append(tokenizer / "tokenizer.json")
    for job in ("midtrain", "sft", "apo"):
        if job in profile.jobs:
            products += [data for data in _post_training_sets(profile, job) if data.is_relative_to(profile.run)]
    if "eval" in profile.jobs:
        from eval.recipe import load_eval_recipe

        products.append(Path(load_eval_recipe(profile.recipes / EVALUATION).data))
    return Plan(path, profile.run / "slurm" / name, (), tuple(products))


def _post_training_sets(profile: Profile, job: str) -> list[Path]:
    from posttrain.recipe import load_recipe as load_post_training_recipe

    recipe = load_post_training_recipe(profile.recipes / f"{job}.yaml")
    return [Path(dataset.path) for dataset in recipe.data.datasets]


def _checkpoint(recipe: Recipe) -> Path:
    return recipe.run_folder / "checkpoints" / str(recipe.last_step) / "checkpoint.json"


def _pretraining(profile: Profile, name: str, path: Path, overrides: Sequence[str]) -> Plan:
    recipe = load_recipe(path, overrides)
    inputs = _shard_manifests(recipe)
    start = recipe.checkpoints.resume_checkpoint_path or recipe.checkpoints.load_weights_path
    if start is not None and not list((recipe.run_folder / "checkpoints").glob("*/checkpoint.json")):
        inputs += (_start(profile, name, Path(start)),)
    products = (_checkpoint(recipe),)
    world_size = recipe.parallelism.world_size
    return Plan(
        path,
        recipe.run_folder,
        inputs,
        products,
        world_size=world_size,
        last_step=recipe.last_step,
        checkpoint_suites=_checkpoint_suites(profile),
    )


def _checkpoint_suites(profile: Profile) -> "CheckpointSuites | None":
    from eval.recipe import load_eval_recipe

    file = profile.recipes / EVALUATION
    return load_eval_recipe(file).checkpoints if file.is_file() else None


def _start(profile: Profile, name: str, start: Path) -> Path:
    """The last checkpoint of the stage before, which a half-finished stage does not have; of any other run, some."""
    before = profile.predecessor(name) if name in profile.jobs else None
    if before in profile.pretraining:
        recipe = load_recipe(profile.recipes / f"{before}.yaml")
        if recipe.run_folder == start:
            return _checkpoint(recipe)
    if (start / "checkpoint.json").is_file():
        return start / "checkpoint.json"
    return start / "checkpoints" / "*" / "checkpoint.json"


def _pretraining_run(profile: Profile, model: Path) -> Recipe | None:
    """The pretraining recipe whose run is exported to the transformers folder `model`, <run>/hf/<its name>."""
    recipes = (load_recipe(profile.recipes / f"{job}.yaml") for job in profile.pretraining)
    return next((recipe for recipe in recipes if model == profile.run / "hf" / recipe.general.run), None)


def _model_input(profile: Profile, model: Path) -> tuple[tuple[Path, ...], Path | None]:
    """What must exist for a job that reads a transformers folder, and the run to export it from if it is not there."""
    if (model / "config.json").is_file():
        return (), None
    recipe = _pretraining_run(profile, model)
    if recipe is not None:
        return (_checkpoint(recipe),), recipe.run_folder
    is_hub_name = not model.is_absolute() and len(model.parts) == 2 and not model.parent.exists()
    return (() if is_hub_name else (model / "config.json",)), None


def _post_training(profile: Profile, name: str, path: Path, overrides: Sequence[str]) -> Plan:
    from posttrain.recipe import load_recipe as load_post_training_recipe

    recipe = load_post_training_recipe(path, overrides)
    sets = tuple(data for data in (Path(d.path) for d in recipe.data.datasets) if data.is_relative_to(profile.run))
    model = Path(recipe.model.model_name_or_path)
    inputs, export_from = _model_input(profile, model)
    others = [other for other in sorted(path.parent.glob(f"{name}_*.yaml")) if other != path]  # seeds, for the soup
    trained = [load_post_training_recipe(other, overrides) for other in others] + [recipe]
    optimizer = recipe.optimizer
    return Plan(
        path,
        recipe.run_folder,
        inputs + sets,
        tuple(run.model_folder / "config.json" for run in trained),
        micro_batches=optimizer.global_batch_size // optimizer.micro_batch_size,
        num_epochs=optimizer.num_train_epochs,
        runs=tuple(run.run_folder for run in trained),
        model=model,
        export_from=export_from,
    )


def _merge(profile: Profile, name: str, path: Path, overrides: Sequence[str]) -> Plan:
    from merge.recipe import load_merge_recipe

    recipe = load_merge_recipe(path, overrides)
    models = [Path(ingredient.path) for ingredient in recipe.soup.checkpoints]
    products = [Path(recipe.soup.output)]
    if recipe.linear is not None:
        models.append(Path(recipe.linear.mid_training))
        products.append(Path(recipe.linear.output))
    return Plan(
        path,
        profile.run / "slurm" / name,
        tuple(model / "config.json" for model in models),
        tuple(product / "config.json" for product in products),
    )


def _evaluation(profile: Profile, name: str, path: Path, overrides: Sequence[str]) -> Plan:
    """MODEL and SUITE of the environment choose; else the chain's model and the suites that can run on it."""
    from eval.benchmarks import BENCHMARKS
    from eval.recipe import Suite, load_eval_recipe

    def can_run(suite: Suite) -> bool:
        executes = any(BENCHMARKS[task.benchmark or key].executes_code for key, task in suite.tasks.items())
        return (name == "eval" or not suite.needs_chat_template) and (recipe.execute_code or not executes)

    recipe = load_eval_recipe(path, overrides)
    model = Path(os.environ.get("MODEL") or _evaluated_model(profile, name))
    fitting = [key for key, suite in recipe.suites.items() if can_run(suite)]
    suites = tuple(os.environ.get("SUITE", "").split() or fitting)
    unknown = [suite for suite in suites if suite not in recipe.suites]
    if unknown:
        raise JobError(f"There is no suite {unknown[0]!r} in {path}; it has {', '.join(recipe.suites)}.")
    inputs, export_from = _model_input(profile, model)
    results = tuple(Path(recipe.output) / model.name / f"{suite}.json" for suite in suites)
    folder = profile.run / "slurm" / f"{name}-{model.name}"
    return Plan(
        path, folder, (*inputs, Path(recipe.data)), results, model=model, export_from=export_from, suites=suites
    )


def _checkpoint_evaluation(profile: Profile, name: str, path: Path, overrides: Sequence[str]) -> Plan:
    """CHECKPOINT of the environment says which one: a folder of slurm/checkpoint_evaluations.py."""
    from eval.recipe import load_eval_recipe

    recipe = load_eval_recipe(path, overrides)
    if recipe.checkpoints is None or "CHECKPOINT" not in os.environ:
        raise JobError(f"{name} is submitted by training jobs, as the section checkpoints of {path} says.")
    folder = Path(os.environ["CHECKPOINT"])
    return Plan(
        path,
        folder,
        (folder / "checkpoint" / "checkpoint.json", Path(recipe.data)),
        (folder / "scores.json",),
        model=folder / f"{folder.parent.parent.name}-{folder.name}",
        suites=tuple(recipe.checkpoints.suites),
    )


def _evaluated_model(profile: Profile, name: str) -> Path:
    """What the chain evaluates: the last model of all (eval), or the last one of pretraining (eval_base)."""
    last = profile.predecessor(name)
    if last is None or last == "data":
        raise JobError(f"{profile.recipes} has no recipe that makes a model. Say which one to evaluate: MODEL=FOLDER.")
    if last in profile.pretraining:
        return profile.run / "hf" / load_recipe(profile.recipes / f"{last}.yaml").general.run
    return profile.plan(last).products[-1].parent


def _report(profile: Profile, name: str, path: Path, overrides: Sequence[str]) -> Plan:
    inputs = tuple(product for job in profile.waits_for(name) for product in profile.plan(job).products)
    return Plan(path, profile.run / "slurm" / name, inputs, (profile.run / "report" / "index.html",))


KINDS = {
    "data": Kind(_data, recipe_file=DATA),
    "pretrain_stage1": Kind(_pretraining),
    "pretrain_stage2": Kind(_pretraining),
    "pretrain_stage3": Kind(_pretraining),
    "long_context_32k": Kind(_pretraining),
    "long_context_64k": Kind(_pretraining),
    "eval_base": Kind(_evaluation, script="eval", recipe_file=EVALUATION),
    "midtrain": Kind(_post_training),
    "sft": Kind(_post_training),
    "apo": Kind(_post_training),
    "merge": Kind(_merge),
    "eval": Kind(_evaluation),
    "report": Kind(_report, recipe_file=EVALUATION),
    "eval_checkpoint": Kind(_checkpoint_evaluation, recipe_file=EVALUATION, in_chain=False),
}


def kind_of(name: str) -> Kind:
    """Raises JobError when there is no such job."""
    if name not in KINDS:
        raise JobError(f"There is no job {name!r}. Jobs: {', '.join(KINDS)}.")
    return KINDS[name]


def script_of(name: str) -> Path:
    return SCRIPTS / f"{kind_of(name).script or name}.sh"
