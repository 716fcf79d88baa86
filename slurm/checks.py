"""What must hold before a job is queued, and again when it starts: `python -m slurm.checks JOB`, for lib.sh."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from foundation.errors import UserError
from foundation.project import project_file, recipe_place
from jobs.profile import JobError, Plan, Profile
from slurm.cluster import SITE_FILE, QueuedJob, Resources, load_cluster_settings, queued_jobs

WAIT = 3  # exit code: the job before this one still runs


def profile_from_environment() -> Profile:
    """PROFILE, RUN and RECIPES, with the defaults of lib.sh; RUN also reaches the recipes' ${RUN}, both reach jobs."""
    name = os.environ.get("PROFILE", "smollm3-3b")
    run = os.environ.setdefault("RUN", f"runs/{name}")
    recipes = recipe_place(Path(os.environ.get("RECIPES", f"recipes/{name}")))
    os.environ["RECIPES"] = str(recipes)
    return Profile(recipes, Path(run))


def check_job(
    profile: Profile, name: str, resources: Resources, overrides: Sequence[str], comes_first: Sequence[str] = ()
) -> Plan:
    """All checks; `comes_first` names queued jobs that will have made what is missing now.

    Raises:
        UserError: a sentence that says what is wrong and what to do.
    """
    plan = profile.plan(name, overrides)
    settings = load_cluster_settings(profile)
    if settings.device == "cuda":
        check_site_file()
    processes_per_node(plan, resources, settings.device)
    if not comes_first:
        check_inputs(profile, name, plan)
    return plan


def read_site_settings() -> None:
    """Take what the site file exports (SBATCH_PARTITION, SBATCH_ACCOUNT, ...) into the environment.

    Raises:
        JobError: when the file cannot be read as a shell script.
    """
    file = _site_file()
    if file.is_file():
        source = ("bash", "-euc", 'source "$1" >&2; exec env --null', "bash", str(file))
        answer = subprocess.run(source, capture_output=True, text=True)
        if answer.returncode != 0:
            raise JobError(f"{file} is not a shell script that runs: {answer.stderr.strip()}")
        os.environ.update(line.partition("=")[::2] for line in answer.stdout.split("\0") if line)


def _site_file() -> Path:
    return Path(os.environ.get("SMOLLM3_SITE", SITE_FILE))


def check_site_file() -> None:
    """Raises JobError when nobody has said which partition, modules and Python to use."""
    file = _site_file()
    if not file.is_file():
        raise JobError(
            f"There is no site file {file} with this cluster's partition, account, modules and Python. "
            f"Copy {project_file('slurm/site.sh.example')} to {SITE_FILE} and edit it."
        )


def processes_per_node(plan: Plan, resources: Resources, device: str) -> int:
    """One process per GPU; on CPUs as many as the layout needs.

    Raises:
        JobError: when the nodes do not hold the recipe's layout, naming the numbers that do.
    """
    if not plan.is_distributed:
        return 1
    nodes, gpus = resources.nodes, resources.gpus_per_node
    if device == "cpu":
        needed = plan.world_size or nodes
        if needed % nodes:
            fitting = ", ".join(str(number) for number in range(1, needed + 1) if needed % number == 0)
            raise JobError(
                f"{plan.recipe} needs {needed} processes (dp x pp x tp), which {nodes} nodes cannot share evenly. "
                f"Use --nodes= one of {fitting}."
            )
        per_node = needed // nodes
    else:
        if gpus == 0:
            raise JobError("The job asks for no GPUs. Ask for them with --gres=gpu:8, as the scripts' headers do.")
        needed = plan.world_size or nodes * gpus
        if needed != nodes * gpus:
            fix = f"Use --nodes={needed // gpus}" if needed % gpus == 0 else "Change the GPUs per node (--gres=gpu:N)"
            raise JobError(
                f"{plan.recipe} needs {needed} GPUs (dp x pp x tp), but {nodes} nodes x {gpus} GPUs are "
                f"{nodes * gpus}. {fix}, or change the parallelism section."
            )
        per_node = gpus
    if plan.micro_batches is not None and plan.micro_batches % (nodes * per_node):
        raise JobError(
            f"{plan.recipe} makes a step of {plan.micro_batches} micro-batches, which {nodes} nodes x {per_node} "
            "processes cannot share evenly. Use another --nodes=, or another optimizer.micro_batch_size."
        )
    return per_node


def check_inputs(profile: Profile, name: str, plan: Plan) -> None:
    """Raises JobError when something that the job starts from is not there."""
    missing = plan.missing_inputs
    if not missing:
        return
    listed = ", ".join(str(path) for path in missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
    before = profile.predecessor(name) if name in profile.jobs else None
    fix = f"Finish {before} first (slurm/submit {before}), or submit it together with this job" if before else "Make it"
    what = "no checkpoint to start from" if all(path.name == "checkpoint.json" for path in missing) else "missing input"
    raise JobError(f"{name}: {what}: {listed}. {fix}: make cluster-run submits the whole chain.")


def waits_for(profile: Profile, name: str, plan: Plan, queue: dict[str, QueuedJob]) -> list[QueuedJob]:
    """Queued jobs that make what this one lacks: the nearest of the jobs before it, if it is not done already."""
    if not plan.missing_inputs or name not in profile.jobs:
        return []
    before = profile.predecessor(name)
    while before is not None and before not in queue:
        before = profile.predecessor(before)
    return [queue[before]] if before is not None else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.checks", description=__doc__)
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    try:
        profile = profile_from_environment()
        nodes, gpus = int(os.environ["SLURM_NNODES"]), int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
        resources = Resources(nodes, gpus)
        plan = profile.plan(options.job, options.overrides)
        waiting = waits_for(profile, options.job, plan, queued_jobs(profile.run))
        if waiting:
            print(waiting[0].job_id)
            return WAIT
        check_job(profile, options.job, resources, options.overrides)
        device = load_cluster_settings(profile).device
        per_node = processes_per_node(plan, resources, device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    values = {
        "JOB_RECIPE": plan.recipe,
        "JOB_FOLDER": plan.folder,
        "JOB_PROCESSES_PER_NODE": per_node,
        "JOB_DEVICE": device,
        "JOB_MODEL": plan.model or "",
        "JOB_EXPORT_FROM": plan.export_from or "",
        "JOB_SUITES": " ".join(plan.suites),
        "JOB_EVALUATES_CHECKPOINTS": "yes" if plan.checkpoint_suites else "",
    }
    for key, value in values.items():
        print(f"{key}={shlex.quote(str(value))}")
    print(f"JOB_RUNS=({shlex.join(map(str, plan.runs))})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
