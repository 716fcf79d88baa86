"""Check a job and put it into the queue: `slurm/submit JOB [sbatch options ...] [-- section.key=value ...]`.

PROFILE chooses the recipes and RUN the folder for results, as everywhere; REBUILD names prepared sources that the data
job may replace. A job whose predecessor is still queued or running is submitted behind it. Whatever would make the job
fail at its start is refused here, before the queue.
"""

import argparse
import os
import sys

from foundation.errors import UserError
from jobs.scheduler import load_scheduler
from jobs.submission import submit_job
from slurm.adapter import read_site_settings
from slurm.checks import profile_from_environment


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
        profile = profile_from_environment()
        print(submit_job(profile, load_scheduler(profile), job, sbatch_options, arguments[split + 1 :]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
