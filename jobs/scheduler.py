"""What this project asks of a scheduler: the interface that an adapter implements, and which adapter a profile uses.

Another scheduler than Slurm needs a class with the methods of `Scheduler`, named in the profile's cluster.yaml.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from foundation.yaml_text import YamlTextError, load
from jobs.plan import Folders, JobError, Place, Plan

SLURM = "slurm.adapter:Slurm"


@dataclass(frozen=True)
class Resources:
    """Nodes, and GPUs on each; 0 GPUs on CPU clusters."""

    nodes: int
    gpus_per_node: int


@dataclass(frozen=True)
class QueuedJob:
    """A job that the scheduler still has to finish."""

    job_id: str
    name: str
    state: str  # in one word: running, pending, ...
    waits: bool  # it has not started
    reason: str = ""  # why it waits


@dataclass(frozen=True)
class Submission:
    """One job to be queued. `options` are the user's, in the scheduler's own words."""

    plan: Plan
    run: Path
    after: tuple[str, ...] = ()  # ids of the jobs that have to succeed first
    options: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()  # section.key=value for the job's recipe

    @property
    def commands(self) -> list[tuple[str, ...]]:
        """What the job does, as words behind `smollm3`, on one machine."""
        return [(*command, *self.overrides) for command in self.plan.commands]


@dataclass(frozen=True)
class History:
    """How often a job was started, and if it is neither queued nor done: why."""

    attempts: int = 0
    reason: str = ""


class Scheduler(Protocol):
    """An adapter. Every method raises JobError, with what the scheduler says, when it does not answer or refuses.

    `place` is "chain" if its jobs run the commands of the table, each on one machine, and "cluster" if it has a program
    of its own for each job, which runs on many nodes and exports the model that it starts from, as slurm/*.sh do.
    """

    place: Place

    def check(self) -> None:
        """Raises JobError when nobody has said what this site needs: partition, account, Python, ..."""

    def resources(self, name: str, options: Sequence[str] = ()) -> Resources:
        """What the job of that name will be given, with the user's `options`."""

    def queue(self, run: Path) -> dict[str, QueuedJob]:
        """The jobs of this run folder, by name, that have not ended."""

    def submit(self, submission: Submission) -> str:
        """Put a job into the queue; returns its id."""

    def output(self, name: str, job_id: str) -> str:
        """Where what the job prints will be."""

    def history(self, plan: Plan) -> History:
        """Of a job's attempts, as far as the scheduler's jobs note them."""


class ClusterSettings(BaseModel):
    """`<recipes>/cluster.yaml`: how a profile runs on a cluster. All further keys are the adapter's."""

    model_config = ConfigDict(extra="allow", frozen=True)

    scheduler: str = SLURM  # module:class
    device: Literal["cuda", "cpu"] = "cuda"  # cpu: no GPUs, no site file, processes per node as the layout needs

    @property
    def of_the_adapter(self) -> Mapping[str, Any]:
        return self.model_extra or {}


def load_cluster_settings(folders: Folders) -> ClusterSettings:
    """The profile's cluster.yaml, or the defaults.

    Raises:
        JobError: when the file is not valid.
    """
    file = folders.recipe("cluster")
    if not file.is_file():
        return ClusterSettings()
    try:
        return ClusterSettings.model_validate(load(file.read_text(encoding="utf-8")) or {})
    except (YamlTextError, UnicodeDecodeError, ValidationError) as error:
        raise JobError(f"{file} is not valid: {error}") from None


def load_scheduler(folders: Folders) -> Scheduler:
    """The adapter that the profile's cluster.yaml names, Slurm's by default, with the settings that are its own.

    Raises:
        JobError: when there is no such adapter, or it does not know one of the settings.
    """
    settings = load_cluster_settings(folders)
    module, _, name = settings.scheduler.partition(":")
    try:
        adapter = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"scheduler: {settings.scheduler} is no adapter that can be imported ({error})"
        raise JobError(
            f"{folders.recipe('cluster')}: {message}. Write module:class, as in {SLURM}, and put the folder of a "
            f"module of your own on PYTHONPATH."
        ) from None
    try:
        scheduler: Scheduler = adapter(settings.of_the_adapter)
    except ValidationError as error:
        raise JobError(f"{folders.recipe('cluster')} is not valid: {error}") from None
    return scheduler
