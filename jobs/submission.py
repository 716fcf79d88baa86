"""The jobs of a profile as one graph of dependencies in a scheduler's queue.

Jobs that are done or already queued are left alone, so submitting the chain again only fills gaps. Whatever would make
a job fail at its start is refused here, before the queue.
"""

import os
from collections.abc import Sequence

from jobs.checks import check_job
from jobs.plan import JobError, Plan
from jobs.profile import Profile
from jobs.scheduler import QueuedJob, Scheduler, Submission
from jobs.table import job_of


def missing_jobs(profile: Profile, scheduler: Scheduler, queue: dict[str, QueuedJob]) -> dict[str, Plan]:
    """Jobs that are neither done nor queued, all of them checked.

    Raises:
        UserError: if one of them could not run; nothing was submitted.
    """
    coming = list(queue)
    missing = {}
    for name in profile.jobs_in(scheduler.place):
        plan = profile.plan(name)
        if name not in queue and not plan.is_done:
            check_job(profile, scheduler, plan, scheduler.resources(name), coming)
            coming.append(name)
            missing[name] = plan
    return missing


def submit_chain(profile: Profile, scheduler: Scheduler, *, dry_run: bool = False) -> int:
    """Submit what is missing, print the graph; returns the number of jobs submitted.

    Raises:
        UserError: see `missing_jobs`, or what the scheduler says.
    """
    queue = scheduler.queue(profile.run)
    missing = missing_jobs(profile, scheduler, queue)
    ids = {name: job.job_id for name, job in queue.items()}
    print(f"{profile.recipes} -> {profile.run}")
    for name in profile.jobs_in(scheduler.place):
        if name not in missing:
            print(f"  {name:<18} {f'job {ids[name]}, queued before' if name in queue else 'done'}")
            continue
        before = profile.comes_after(name, {*queue, *missing})
        behind = f"after {', '.join(before)}" if before else ""
        if not dry_run:
            ids[name] = scheduler.submit(Submission(missing[name], profile.run, tuple(ids[job] for job in before)))
        print(f"  {name:<18} {'would be submitted' if dry_run else f'job {ids[name]}'} {behind}".rstrip())
    count = 0 if dry_run else len(missing)
    print(f"{count} jobs submitted. `smollm3 cluster-status` shows where they are.")
    return count


def submit_job(
    profile: Profile, scheduler: Scheduler, name: str, options: Sequence[str] = (), overrides: Sequence[str] = ()
) -> str:
    """Check and submit one job, with options in the scheduler's own words; returns a line that says what happened.

    REBUILD of the environment names prepared sources that the data job may replace. A job that comes after others which
    are still queued or running is submitted behind them.

    Raises:
        UserError: nothing was submitted; the message says why.
    """
    if scheduler.place not in job_of(name).places:
        raise JobError(f"{name} is no job of this scheduler; on this machine: {profile.command(name) or 'none'}.")
    queue = scheduler.queue(profile.run)
    if name in queue:
        raise JobError(f"{name} is in the queue already, as job {queue[name].job_id} ({queue[name].state}).")
    plan = profile.plan(name, overrides)
    if (profile.model or profile.suites) and not plan.suites:
        raise JobError(f"{name} is no evaluation, so it takes no model and no suites (--model, --suite, MODEL, SUITE).")
    check_job(profile, scheduler, plan, scheduler.resources(name, options), list(queue))
    if plan.is_done and not (name == "data" and os.environ.get("REBUILD")):
        return f"{name} is done: {plan.products[-1]} exists."
    first = [queue[job] for job in profile.comes_after(name, queue)]
    after = tuple(job.job_id for job in first)
    job_id = scheduler.submit(Submission(plan, profile.run, after, tuple(options), tuple(overrides)))
    behind = ", ".join(f"{job.name} ({job.job_id})" for job in first)
    return f"{name}: job {job_id}{behind and f' behind {behind}'}, output in {scheduler.output(name, job_id)}"
