"""The queue: what Slurm holds for a run folder, and how this profile's jobs are put into it."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from foundation.project import ROOT, project_file
from jobs.profile import JobError, Profile, script_of

SITE_FILE = Path("slurm/site.sh")
LOGS = Path("slurm/logs")  # of jobs, as the scripts' headers say; below the folder that they are submitted from


class ClusterSettings(BaseModel):
    """`<recipes>/cluster.yaml`: what a profile asks of Slurm in place of the headers of slurm/*.sh."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Literal["cuda", "cpu"] = "cuda"  # cpu: no GPUs, no site file, processes per node as the layout needs
    sbatch: dict[str, dict[str, str | int]] = {}  # job, or `all` -> long options of sbatch

    def options(self, job: str) -> list[str]:
        """sbatch options of a job, in the order in which later ones win."""
        merged = self.sbatch.get("all", {}) | self.sbatch.get(job, {})
        return [f"--{name}={value}" for name, value in merged.items()]


def load_cluster_settings(profile: Profile) -> ClusterSettings:
    """The profile's cluster.yaml, or the defaults.

    Raises:
        JobError: when the file is not valid.
    """
    file = profile.recipes / "cluster.yaml"
    if not file.is_file():
        return ClusterSettings()
    try:
        return ClusterSettings.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValidationError) as error:
        raise JobError(f"{file} is not valid: {error}") from None


@dataclass(frozen=True)
class Resources:
    """Nodes, and GPUs on each; 0 GPUs on CPU clusters."""

    nodes: int
    gpus_per_node: int


def requested_resources(job: str, options: list[str]) -> Resources:
    """What sbatch will ask for: the script's header, overruled by `options`."""
    header = re.findall(r"^#SBATCH\s+(--\S+)", project_file(script_of(job)).read_text(encoding="utf-8"), re.MULTILINE)
    nodes, gpus = 1, 0
    for option in header + _long_options(options):
        name, _, value = option.partition("=")
        if name == "--nodes":
            if not value.isdigit():
                raise JobError(f"--nodes={value}: give one number; the layout of a run needs exactly so many nodes.")
            nodes = int(value)
        elif name in ("--gres", "--gpus-per-node"):
            count = re.fullmatch(r"(?:gpu:)?(?:[A-Za-z][\w.-]*:)?(\d+)", value)
            gpus = int(count[1]) if count else 0
    return Resources(nodes, gpus)


def _long_options(options: list[str]) -> list[str]:
    """`-N 2`, `-N2` and `--nodes 2` as `--nodes=2`."""
    text = "\n".join(options)
    text = re.sub(r"^-N\n?(?=\d)", "--nodes=", text, flags=re.MULTILINE)
    return re.sub(r"^(--(?:nodes|gres|gpus-per-node))\n", r"\1=", text, flags=re.MULTILINE).split("\n")


@dataclass(frozen=True)
class QueuedJob:
    job_id: int
    name: str
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str  # why it waits
    dependency: str


def queued_jobs(run: Path) -> dict[str, QueuedJob]:
    """This run folder's jobs that Slurm still has to finish, by name. Jobs carry their run folder as comment.

    Raises:
        JobError: when Slurm does not answer.
    """
    fields = "JobID:20,Name:60,State:20,Reason:60,Dependency:200,Comment:1000"
    jobs = {}
    for line in _slurm("squeue", "--me", "--noheader", f"--Format={fields}").splitlines():
        widths = (20, 60, 20, 60, 200, 1000)
        starts = [sum(widths[:number]) for number in range(len(widths))]
        columns = [line[start : start + width].strip() for start, width in zip(starts, widths, strict=True)]
        job_id, name, state, reason, dependency, comment = columns
        if comment == str(run.absolute()):
            jobs[name] = QueuedJob(int(job_id), name, state, reason, dependency)
    return jobs


def sbatch(job: str, run: Path, options: list[str], after: list[int], overrides: list[str], name: str = "") -> int:
    """Put a job into the queue, behind the jobs with the ids `after`; returns its id. `name` defaults to the job's.

    Raises:
        JobError: with sbatch's own words.
    """
    dependency = [f"--dependency=afterok:{':'.join(map(str, after))}", "--kill-on-invalid-dep=yes"] if after else []
    named = [f"--job-name={name or job}", f"--comment={run.absolute()}"]
    LOGS.mkdir(parents=True, exist_ok=True)  # Slurm does not, and the job would fail without a word
    script = str(project_file(script_of(job)))
    answer = _slurm("sbatch", "--parsable", *named, *dependency, *options, script, *overrides)
    return int(answer.split(";")[0])


def _slurm(*command: str) -> str:
    # A job that submits another one must not hand down what Slurm told it about itself.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("SLURM") or key == "SLURM_CONF"
    }
    if not Path.cwd().samefile(ROOT):  # where a job starts; Slurm runs a copy of the script, which could find neither
        environment |= {"SMOLLM3_SCRIPTS": str(project_file("slurm")), "SMOLLM3_PYTHON": sys.executable}
    try:
        answer: Any = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except FileNotFoundError:
        raise JobError(
            f"{command[0]} is not on this machine. Log in to a Slurm cluster, or try slurm/dev-cluster up."
        ) from None
    except subprocess.CalledProcessError as error:
        raise JobError(f"{command[0]} refused: {error.stderr.strip()}") from None
    return str(answer.stdout)
