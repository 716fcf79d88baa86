"""The whole chain, from data to the final evaluation, as one dependency graph: `make cluster-run PROFILE=...`.

Jobs that are done or already queued are left alone, so running it again only fills gaps.
"""

import argparse
import sys

from foundation.errors import UserError
from jobs.profile import Profile
from slurm.checks import check_job, profile_from_environment, read_site_settings
from slurm.cluster import load_cluster_settings, queued_jobs, requested_resources, sbatch


def missing_jobs(profile: Profile) -> list[str]:
    """Jobs that are neither done nor queued, all of them checked.

    Raises:
        UserError: if one of them could not run; nothing was submitted.
    """
    settings, queue = load_cluster_settings(profile), queued_jobs(profile.run)
    coming = set(queue)
    missing = []
    for name in profile.jobs:
        if name in queue or profile.plan(name).is_done:
            continue
        comes_first = [before for before in profile.waits_for(name) if before in coming]
        check_job(profile, name, requested_resources(name, settings.options(name)), [], comes_first)
        coming.add(name)
        missing.append(name)
    return missing


def submit_chain(profile: Profile, *, dry_run: bool = False) -> int:
    """Submit what is missing, print the graph; returns the number of jobs submitted.

    Raises:
        UserError: see `missing_jobs`, or what sbatch says.
    """
    missing = missing_jobs(profile)
    settings = load_cluster_settings(profile)
    ids = {name: job.job_id for name, job in queued_jobs(profile.run).items()}
    print(f"{profile.recipes} -> {profile.run}")
    for name in profile.jobs:
        before = [job for job in profile.waits_for(name) if job in ids or job in missing]
        behind = f"after {', '.join(before)}" if before else ""
        if name not in missing:
            print(f"  {name:<18} {f'job {ids[name]}, queued before' if name in ids else 'done'}")
            continue
        if not dry_run:
            after = [ids[job] for job in before]
            ids[name] = sbatch(name, profile.run, settings.options(name), after, [])
        print(f"  {name:<18} {'would be submitted' if dry_run else f'job {ids[name]}'} {behind}".rstrip())
    count = 0 if dry_run else len(missing)
    print(f"{count} jobs submitted. `make cluster-status` shows where they are.")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.cluster_run", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="check and print the graph, submit nothing")
    options = parser.parse_args()
    try:
        read_site_settings()
        submit_chain(profile_from_environment(), dry_run=options.dry_run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
