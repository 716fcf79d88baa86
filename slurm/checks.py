"""The checks of a job when it starts, and what it is to do: `python -m slurm.checks JOB`, for lib.sh."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from foundation.errors import UserError
from foundation.plain_text import plain
from foundation.project import recipe_place
from jobs.checks import check_job, processes_per_node
from jobs.plan import Plan
from jobs.profile import Profile
from jobs.scheduler import Resources, load_cluster_settings
from slurm.adapter import Slurm

WAIT = 3  # exit code: a job that this one comes after still runs


def profile_from_environment() -> Profile:
    """PROFILE, RUN and RECIPES, with the defaults of lib.sh; RUN also reaches the recipes' ${RUN}, both reach jobs.

    MODEL and SUITE choose what an evaluation looks at, CHECKPOINT what slurm/eval_checkpoint.sh does.
    """
    name = os.environ.get("PROFILE", "smollm3-3b")
    run = os.environ.setdefault("RUN", f"runs/{name}")
    model, checkpoint = os.environ.get("MODEL"), os.environ.get("CHECKPOINT")
    recipes = recipe_place(Path(os.environ.get("RECIPES", f"recipes/{name}")))
    os.environ["RECIPES"] = str(recipes)
    return Profile(
        recipes,
        Path(run),
        model=Path(model) if model else None,
        suites=tuple(os.environ.get("SUITE", "").split()),
        checkpoint=Path(checkpoint) if checkpoint else None,
    )


def waits_for(profile: Profile, scheduler: Slurm, plan: Plan) -> list[str]:
    """Ids of the queued jobs that make what this one lacks: the nearest before it, if it lacks anything."""
    if not plan.missing_inputs or not plan.job.in_graph:
        return []
    queue = scheduler.queue(profile.run)
    return [queue[name].job_id for name in profile.comes_after(plan.name, queue)]


def assignments(plan: Plan, per_node: int, device: str) -> str:
    """The JOB_ variables of lib.sh, for a shell."""
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
    lines = [f"{key}={shlex.quote(str(value))}" for key, value in values.items()]
    lines.append(f"JOB_RUNS=({shlex.join(str(run.folder) for run in plan.runs)})")
    return "\n".join([*lines, f"JOB_COMMANDS=({shlex.join(shlex.join(command) for command in plan.commands)})"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.checks", description=__doc__)
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args()
    try:
        profile = profile_from_environment()
        settings = load_cluster_settings(profile)
        scheduler = Slurm(settings.of_the_adapter, in_job=True)
        nodes, gpus = int(os.environ["SLURM_NNODES"]), int(os.environ.get("SLURM_GPUS_ON_NODE", "0"))
        resources = Resources(nodes, gpus)
        plan = profile.plan(options.job, options.overrides)
        if waiting := waits_for(profile, scheduler, plan):
            print(":".join(waiting))
            return WAIT
        check_job(profile, scheduler, plan, resources)
        print(assignments(plan, processes_per_node(plan, resources, settings.device), settings.device))
    except UserError as error:
        print(plain(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
