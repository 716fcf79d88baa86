"""The stages of a source's build on datatrove's executors: on this machine, or on a Slurm cluster.

Both mark every finished task below `<logs>/<stage>/completions/` and skip it the next time.
"""

import contextlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import multiprocess  # type: ignore[import-untyped]
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats

from datapipes.dedup import Stage
from datapipes.errors import SourceError
from foundation.secrets import environment_for_jobs

POLL_SECONDS = 20.0
JOBS_FILE = "slurm_jobs.json"


class _QuietExecutor(LocalPipelineExecutor):
    """Logs to the tasks' log files only; the terminal belongs to the progress bar."""

    def run(self) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            super().run()

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        with contextlib.redirect_stderr(io.StringIO()):
            return super()._run_for_rank(rank, local_rank, node_rank)


class _SlurmExecutor(SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Not launched: the counts are read task by task, and the job could find the build moved to its place."""


@dataclass(frozen=True)
class SlurmSettings:
    """What each task asks of Slurm; empty fields are left to the cluster."""

    partition: str
    time: str  # limit, as sbatch takes it
    cpus_per_task: int = 1
    memory_per_cpu_gb: int = 4
    qos: str = ""


def run_locally(stages: Sequence[Stage], logs: Path, workers: int) -> None:
    """Run what is still to run, at most so many tasks at a time."""
    multiprocess.set_forkserver_preload(["datapipes.pipeline"])  # worker processes start with everything imported
    for stage in stages:
        _QuietExecutor(
            pipeline=stage.steps,
            tasks=stage.tasks,
            workers=min(workers, stage.tasks),
            logging_dir=str(logs / stage.name),
        ).run()


def submit(stages: Sequence[Stage], logs: Path, settings: SlurmSettings, job_name: str) -> None:
    """Submit what is still to run as arrays of jobs of one task, each stage after the success of the one before.

    Does nothing while jobs of an earlier submission are in the queue.

    Raises:
        SourceError: if sbatch cannot be run or refuses.
    """
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise SourceError("--executor slurm submits jobs of its own: run it on a login node, not in a job array.")
    if _in_queue(_submitted_jobs(logs)):
        return
    _forget_stages_after_the_first_incomplete(stages, logs)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}",
    }
    chain: list[_SlurmExecutor] = []
    for stage in stages:
        executor = _SlurmExecutor(
            pipeline=stage.steps,
            tasks=stage.tasks,
            # With several, datatrove's tasks of one job would share a random state: other bytes than on one machine.
            tasks_per_job=1,
            time=settings.time,
            partition=settings.partition,
            cpus_per_task=settings.cpus_per_task,
            mem_per_cpu_gb=settings.memory_per_cpu_gb,
            qos=settings.qos,
            job_name=f"{job_name}-{stage.name}",
            env_command="export " + " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items()),
            sbatch_args={"kill-on-invalid-dep": "yes"},
            logging_dir=str(logs / stage.name),
            depends=chain[-1] if chain else None,
        )
        chain.append(executor)
    try:
        with contextlib.redirect_stderr(io.StringIO()), environment_for_jobs():
            chain[-1].run()
    except (OSError, subprocess.CalledProcessError) as error:
        raise SourceError(f"sbatch failed for {job_name}: {error}. Is this a login node of the cluster?") from None
    finally:
        jobs = [executor.job_id for executor in chain if executor.job_id not in (None, -1)]
        logs.mkdir(parents=True, exist_ok=True)
        (logs / JOBS_FILE).write_text(json.dumps(jobs) + "\n", encoding="utf-8")


def wait(stages: Sequence[Stage], logs: Path) -> None:
    """Return when all tasks of all stages are done.

    Raises:
        SourceError: if the submitted jobs ended otherwise.
    """
    while incomplete := _first_incomplete(stages, logs):
        if not _in_queue(_submitted_jobs(logs)):
            time.sleep(POLL_SECONDS)  # shared file systems show the last marks with a delay
            if incomplete := _first_incomplete(stages, logs):
                stage, missing = incomplete
                raise SourceError(
                    f"{missing} of {stage.tasks} tasks of stage {stage.name!r} ended without success: read "
                    f"{logs / stage.name / 'slurm_logs'}. The same command submits them again."
                )
            return
        time.sleep(POLL_SECONDS)


def tasks_completed(logs: Path, stage: str) -> int:
    return len(list((logs / stage / "completions").glob("*")))


def _first_incomplete(stages: Sequence[Stage], logs: Path) -> tuple[Stage, int] | None:
    for stage in stages:
        if missing := stage.tasks - tasks_completed(logs, stage.name):
            return stage, missing
    return None


def _forget_stages_after_the_first_incomplete(stages: Sequence[Stage], logs: Path) -> None:
    """They can have run on part of its output, where Slurm split a stage into several arrays and one of them failed."""
    if incomplete := _first_incomplete(stages, logs):
        for stage in stages[stages.index(incomplete[0]) + 1 :]:
            shutil.rmtree(logs / stage.name, ignore_errors=True)


def _submitted_jobs(logs: Path) -> list[str]:
    file = logs / JOBS_FILE
    jobs: list[str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return jobs


def _in_queue(jobs: Sequence[str]) -> bool:
    """Whether any of the jobs is waiting or running. When Slurm gives no answer, yes."""
    if not jobs:
        return False
    command = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(jobs)}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise SourceError(f"squeue cannot be run: {error}. Is this a login node of the cluster?") from None
    if answer.returncode and "Invalid job id" not in answer.stderr:
        return True
    return bool(answer.stdout.strip())
