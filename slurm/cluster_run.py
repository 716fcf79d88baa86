"""The whole chain, from data to the final evaluation, as one dependency graph: `make cluster-run PROFILE=...`.

Jobs that are done or already queued are left alone, so running it again only fills gaps.
"""

import argparse
import sys

from foundation.errors import UserError
from jobs.scheduler import load_scheduler
from jobs.submission import submit_chain
from slurm.adapter import read_site_settings
from slurm.checks import profile_from_environment


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.cluster_run", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="check and print the graph, submit nothing")
    options = parser.parse_args()
    try:
        read_site_settings()
        profile = profile_from_environment()
        submit_chain(profile, load_scheduler(profile), dry_run=options.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
