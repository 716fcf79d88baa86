"""Check a job and put it into the queue: `slurm/submit JOB [sbatch options ...] [-- section.key=value ...]`.

PROFILE chooses the recipes and RUN the folder for results, as everywhere; REBUILD names prepared sources that the data
job may replace. A job whose predecessor is still queued or running is submitted behind it. Whatever would make the job
fail at its start is refused here, before the queue.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from foundation.errors import UserError
from jobs.profile import JobError, Profile
from slurm.checks import check_job, profile_from_environment, read_site_settings
from slurm.cluster import LOGS, load_cluster_settings, queued_jobs, requested_resources, sbatch


def submit(profile: Profile, name: str, sbatch_options: Sequence[str] = (), overrides: Sequence[str] = ()) -> str:
    """Check and submit one job; returns a line that says what happened.

    Raises:
        UserError: nothing was submitted; the message says why.
    """
    options = [*load_cluster_settings(profile).options(name), *sbatch_options]
    queue = queued_jobs(profile.run)
    if name in queue:
        raise JobError(f"{name} is in the queue already, as job {queue[name].job_id} ({queue[name].state.lower()}).")
    before = profile.waits_for(name) if name in profile.jobs else ()
    first = [queue[job] for job in before if job in queue]
    plan = check_job(profile, name, requested_resources(name, options), overrides, [job.name for job in first])
    if plan.is_done and not (name == "data" and os.environ.get("REBUILD")):
        return f"{name} is done: {plan.products[-1]} exists."
    job_id = sbatch(name, profile.run, options, [job.job_id for job in first], list(overrides))
    behind = ", ".join(f"{job.name} ({job.job_id})" for job in first)
    return f"{name}: job {job_id}{behind and f' behind {behind}'}, output in {LOGS}/{name}-{job_id}.out"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="slurm/submit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="slurm/submit [-h] JOB [sbatch options ...] [-- section.key=value ...]",
    )
    parser.add_argument("job", help="pretrain_stage1, midtrain, ...: a script of slurm/ without .sh")
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, sbatch_options = parser.parse_known_args(arguments[:split])
    try:
        read_site_settings()
        job = options.job.removeprefix("slurm/").removesuffix(".sh")
        print(submit(profile_from_environment(), job, sbatch_options, arguments[split + 1 :]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
