"""Where a profile's chain is: `make cluster-status PROFILE=...`: state, step, loss, speed, ETA, attempts per job."""

import argparse
import sys

from rich.console import Console

from foundation.errors import UserError
from jobs.scheduler import load_scheduler
from jobs.status import next_jobs, status_table
from slurm.adapter import read_site_settings
from slurm.checks import profile_from_environment


def main() -> int:
    argparse.ArgumentParser(prog="python -m slurm.cluster_status", description=__doc__).parse_args()
    try:
        read_site_settings()
        profile = profile_from_environment()
        scheduler = load_scheduler(profile)
        queue = scheduler.queue(profile.run)
        console = Console() if sys.stdout.isatty() else Console(width=130)
        console.print(status_table(profile, scheduler, queue))
        print(f"next: {', '.join(next_jobs(profile, queue)) or 'nothing'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
