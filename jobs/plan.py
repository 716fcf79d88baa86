"""What one job of a profile is: a row of the table (Job), and what the row comes to in a profile's folders (Plan).

A job is done when its products lie on disk, whoever made them; nothing else is remembered.
"""

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foundation.errors import UserError

if TYPE_CHECKING:  # importing it takes time, and only few jobs read this recipe
    from eval.recipe import CheckpointSuites

PRETRAINING = ("pretrain_stage1", "pretrain_stage2", "pretrain_stage3", "long_context_32k", "long_context_64k")
POST_TRAINING = ("midtrain", "sft", "apo")

_ONE_RECIPE_AFTER_THE_OTHER = ("train", "posttrain")

Place = Literal["chain", "cluster"]  # the chain on this machine, or the jobs of a scheduler


class JobError(UserError):
    """A job that cannot run as asked; nothing was submitted or started."""


@dataclass(frozen=True)
class Folders:
    """A folder of recipes, and the folder that its results go to; what an evaluation is to look at instead."""

    recipes: Path
    run: Path
    model: Path | None = None  # in place of the chain's own
    suites: tuple[str, ...] = ()  # in place of all that the model can run
    checkpoint: Path | None = None  # of a run that still trains

    def recipe(self, name: str) -> Path:
        return self.recipes / f"{name}.yaml"

    def has(self, name: str) -> bool:
        return self.recipe(name).is_file()

    @property
    def posttrain_data(self) -> Path:
        """Where `smollm3 posttrain-data` writes the miniature's generated conversations and held-out prompts."""
        return self.run / "posttrain_data"

    @property
    def pretraining(self) -> tuple[str, ...]:
        """The jobs of PRETRAINING that have a recipe here, in order."""
        return tuple(name for name in PRETRAINING if self.has(name))

    @property
    def post_training(self) -> tuple[str, ...]:
        return tuple(name for name in POST_TRAINING if self.has(name))

    @property
    def option(self) -> tuple[str, str]:
        """That names the recipes to a command; RUN of the environment names the run folder."""
        return "--profile", str(self.recipes)


@dataclass(frozen=True)
class TrainingRun:
    """Where a training's metrics.jsonl grows, and how far: `last_step`, or where that depends on the data `epochs`."""

    folder: Path
    last_step: int | None = None
    epochs: int | None = None


@dataclass(frozen=True)
class Job:
    """A row of the table: what is true of the job in every profile."""

    name: str
    description: str
    plan: Callable[[Folders, "Job", Sequence[str]], "Plan"]
    applies: Callable[[Folders], bool]  # whether a profile has this job
    recipe: str  # without .yaml; the recipe that overrides belong to
    after: tuple[str, ...] = ()  # jobs that make what it reads; what the profile lacks stands for what that comes after
    code: tuple[str, ...] = ()  # files and folders of the repository; what a Python file imports counts too
    versions: tuple[str, ...] = ()  # installed packages whose release may change what comes out
    seconds: float = 60.0  # of the miniature on two cores of an AMD EPYC (2026-11); only the chain's ETA reads it
    places: tuple[Place, ...] = ("chain", "cluster")
    script: str = ""  # of slurm/, without .sh; default: the job's name
    in_graph: bool = True  # False: submitted by other jobs, never as part of all


@dataclass(frozen=True)
class Plan:
    """What a job does in a profile, in files and commands.

    `commands`, `recipes`, `settings`, `code` with the row's code and versions, and the jobs that it comes after decide
    whether a finished job still stands.
    """

    job: Job
    recipe: Path
    folder: Path  # attempts.json, logs/, and for training runs metrics.jsonl and outcome.json
    commands: tuple[tuple[str, ...], ...]  # words behind `smollm3`, run one after the other
    inputs: tuple[Path, ...]  # files or patterns that must exist
    products: tuple[Path, ...]  # files that exist when the job is done
    outputs: tuple[Path, ...] = ()  # moved aside before the job runs anew; others have fingerprints of their own
    recipes: tuple[Path, ...] = ()  # every value counts
    settings: object = None  # that count like a recipe; for JSON
    code: tuple[str, ...] = ()  # beside the row's
    code_left_out: tuple[str, ...] = ()  # files that change no result, or whose values `settings` holds
    runs: tuple[TrainingRun, ...] = ()  # trainings, one after the other
    world_size: int | None = None  # processes; None: one per GPU, or one
    micro_batches: int | None = None  # per step of post-training; the number of processes divides it
    model: Path | None = None  # transformers folder that the job starts from
    export_from: Path | None = None  # run folder to export that model from first, on a cluster
    suites: tuple[str, ...] = ()
    checkpoint_suites: "CheckpointSuites | None" = None  # to evaluate checkpoints with while the job runs

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def is_done(self) -> bool:
        return not self.missing_products

    @property
    def missing_products(self) -> list[Path]:
        return [product for product in self.products if not product.exists()]

    @property
    def is_distributed(self) -> bool:
        """Whether torchrun starts it on all nodes, rather than a single command on one."""
        return self.world_size is not None or self.micro_batches is not None

    @property
    def missing_inputs(self) -> list[Path]:
        return [path for path in self.inputs if not _exists(path)]


def default_run(recipes: Path) -> Path:
    """Where the results of a folder of recipes go unless told otherwise: runs/<its name>."""
    named = recipes if recipes.name not in ("", "..") else recipes.resolve()  # `.` and `..` say no name
    return Path("runs", named.name)


def typed(folders: Folders, commands: Iterable[Sequence[str]]) -> str:
    """The commands as one types them, with RUN where results do not go to runs/<profile>."""
    run = "" if folders.run == default_run(folders.recipes) else f"RUN={shlex.quote(str(folders.run))} "
    return " && ".join(f"{run}{shlex.join(['smollm3', *command])}" for command in _together(commands))


def _together(commands: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """Trainings that follow each other as one command, which runs recipes one after the other."""
    joined: list[tuple[str, ...]] = []
    for verb, *words in commands:
        if joined and verb in _ONE_RECIPE_AFTER_THE_OTHER and joined[-1][0] == verb:
            joined[-1] += tuple(words)
        else:
            joined.append((verb, *words))
    return joined


def _exists(path: Path) -> bool:
    if "*" not in str(path):
        return path.exists()
    anchor = Path(path.anchor or ".")
    return any(anchor.glob(str(path.relative_to(anchor) if path.is_absolute() else path)))
