"""Verbs for clusters: put jobs into a scheduler's queue, and see where they are."""

import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import click

from jobs.profile import Profile
from smollm3 import completing
from smollm3.options import Place, takes_profile

_OWN_OPTIONS = ("--profile", "--run", "--model", "--suite")
_OVERRIDE = re.compile(r"[a-z_]+(\.\w+)+=")


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@takes_profile
@click.option("--model", envvar="MODEL", type=Place(file_okay=False), help="For an evaluation: this model folder.")
@click.option("--suite", "suites", envvar="SUITE", multiple=True, help="For an evaluation: only this suite.")
@click.argument("job", shell_complete=completing.jobs)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[SCHEDULER OPTION...] [-- section.key=value ...]")
def submit(profile: Profile, model: Path | None, suites: tuple[str, ...], job: str, words: tuple[str, ...]) -> None:
    """Check JOB and put it into the queue, behind the jobs that it needs.

    JOB is a job of the chain, such as pretrain_stage1. What follows it goes to the scheduler (sbatch, for Slurm) as it
    is; what follows -- replaces values of the job's recipe. Whatever would make the job fail at its start is refused
    here, before the queue. The variable REBUILD names prepared sources that the data job may replace.
    """
    from jobs.scheduler import load_scheduler
    from jobs.submission import submit_job

    split = words.index("--") if "--" in words else len(words)
    _refuse_misplaced(job, words[:split])
    name = job.removeprefix("slurm/").removesuffix(".sh")
    chosen = _that_evaluates(profile, model, suites)
    click.echo(submit_job(chosen, load_scheduler(chosen), name, words[:split], words[split + 1 :]))


def _refuse_misplaced(job: str, words: Sequence[str]) -> None:
    """What the scheduler would be given, though it is meant for this command: another profile would be submitted."""
    for before, word in pairwise(["", *words]):
        option = word.partition("=")[0]
        if option in _OWN_OPTIONS:
            raise click.UsageError(f"{option} belongs before the job: smollm3 submit {option} ... {job}")
        if _OVERRIDE.match(word) and not before.startswith("-"):
            raise click.UsageError(f"Values of the recipe belong behind --: smollm3 submit {job} -- {word}")


def _that_evaluates(profile: Profile, model: Path | None = None, suites: tuple[str, ...] = ()) -> Profile:
    """The profile whose evaluations look at `model` and `suites`, or at the chain's own; job scripts read the same in
    the environment."""
    os.environ |= {"MODEL": str(model or ""), "SUITE": " ".join(suites)}
    return Profile(profile.recipes, profile.run, model, suites)


@click.command("cluster-run")
@takes_profile
@click.option("--dry-run", is_flag=True, help="Check and print the graph, submit nothing.")
def cluster_run(profile: Profile, dry_run: bool) -> None:
    """Submit the whole chain, from data to the report, as one graph of dependencies.

    Jobs that are done or queued already are left alone, so running it again only fills gaps.
    """
    from jobs.scheduler import load_scheduler
    from jobs.submission import submit_chain

    submit_chain(_that_evaluates(profile), load_scheduler(profile), dry_run=dry_run)


@click.command("cluster-status")
@takes_profile
def cluster_status(profile: Profile) -> None:
    """Where the chain is: state, step, loss, speed, ETA and attempts of each job."""
    from foundation.terminal import Terminal
    from jobs.scheduler import load_scheduler
    from jobs.status import next_jobs, status_table

    scheduler = load_scheduler(profile)
    queue = scheduler.queue(profile.run)
    console = Terminal() if sys.stdout.isatty() else Terminal(width=130)
    console.print(status_table(profile, scheduler, queue))
    waiting = ", ".join(next_jobs(profile, queue))
    nothing = "nothing waits in the queue; smollm3 cluster-run submits what is neither done nor queued"
    click.echo(f"next: {waiting or nothing}")
