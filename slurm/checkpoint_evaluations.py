"""Evaluate checkpoints while training goes on: `python -m slurm.checkpoint_evaluations JOB`, for lib.sh.

The section `checkpoints` of the profile's eval.yaml says how often and with which suites. Each evaluation is a job of
its own (slurm/eval_checkpoint.sh), so whatever becomes of it, training does not notice. <run>/evaluations/<step> holds
the checkpoint as hard links, which outlive its pruning, and then the results; its existence means: submitted.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from foundation.errors import UserError
from foundation.plain_text import plain
from jobs.plan import Plan
from jobs.profile import Profile
from jobs.scheduler import load_cluster_settings
from slurm.adapter import Slurm
from slurm.checks import profile_from_environment

JOB = "eval_checkpoint"


def due(run_folder: Path, every_steps: int) -> list[Path]:
    """Complete checkpoints of every so many steps that nobody has submitted yet, oldest first."""
    complete = [manifest.parent for manifest in (run_folder / "checkpoints").glob("*/checkpoint.json")]
    steps = {int(folder.name): folder for folder in complete if folder.name.isdigit()}
    wanted = sorted(step for step in steps if step % every_steps == 0)
    return [steps[step] for step in wanted if not (run_folder / "evaluations" / str(step)).exists()]


def submit_due(profile: Profile, plan: Plan) -> None:
    """Submit an evaluation of every checkpoint that is due.

    Raises:
        JobError: sbatch refused; the checkpoint stays due.
    """
    assert plan.checkpoint_suites is not None
    slurm = Slurm(load_cluster_settings(profile).of_the_adapter, in_job=True)
    for checkpoint in due(plan.folder, plan.checkpoint_suites.every_steps):
        folder = (plan.folder / "evaluations" / checkpoint.name).absolute()
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(checkpoint, partial / "checkpoint", copy_function=_link)
        except (OSError, shutil.Error):
            continue  # pruned in this moment
        partial.rename(folder)
        # One at a time and in order: wandb takes steps in order only.
        options = ["--dependency=singleton", f"--export=ALL,CHECKPOINT={folder}"]
        try:
            job_id = slurm.sbatch(JOB, profile.run, options, name=f"{JOB}_{plan.folder.name}")
        except UserError:
            shutil.rmtree(folder)
            raise
        print(f"step {checkpoint.name}: job {job_id}", flush=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.checkpoint_evaluations", description=__doc__)
    parser.add_argument("job", help="the training job, such as pretrain_stage1")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of the training job's recipe")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look again and again, so far apart")
    options = parser.parse_args()
    profile = profile_from_environment()
    while True:
        try:
            plan = profile.plan(options.job, options.overrides)
            submit_due(profile, plan)
        except UserError as error:  # the queue may be full or the controller away: the next look may do better
            print(plain(f"error: {error}"), file=sys.stderr, flush=True)
            if options.watch is None:
                return 2
        if options.watch is None:
            return 0
        time.sleep(options.watch)


if __name__ == "__main__":
    sys.exit(main())
