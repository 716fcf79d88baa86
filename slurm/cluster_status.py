"""Where a profile's chain is: `make cluster-status PROFILE=...`: state, step, loss, speed, ETA, attempts per job."""

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from foundation.errors import UserError
from foundation.journal import METRICS_FILE, last_rows
from jobs.profile import Plan, Profile
from slurm.attempts import decide, read_attempts
from slurm.checks import profile_from_environment, read_site_settings
from slurm.cluster import QueuedJob, queued_jobs

_AVERAGED_STEPS = 20


def seconds_left(rows: list[dict[str, Any]], last_step: int) -> float:
    """Remaining steps at the mean time of the recent ones."""
    step, tokens = rows[-1]["step"], rows[-1]["tokens"]
    seconds_per_token = sum(1 / row["tokens_per_second"] for row in rows) / len(rows)
    return float((last_step - step) * tokens / step * seconds_per_token)


def state_of(plan: Plan, queued: QueuedJob | None) -> str:
    """One phrase: done, queued and why, or why it is not."""
    if queued is not None:
        why = f" ({queued.reason})" if queued.state == "PENDING" else ""
        return f"{queued.state.lower()}{why}, job {queued.job_id}"
    if plan.is_done:
        return "done"
    attempts = read_attempts(plan.folder)
    if attempts and attempts[-1].outcome is not None:
        action, reason = decide(attempts)
        return f"failed: {reason}" if action == "fail" else f"left the queue: {reason}"
    return "not submitted"


def row_of(name: str, plan: Plan, queued: QueuedJob | None) -> list[str]:
    rows = last_rows(plan.folder / METRICS_FILE, _AVERAGED_STEPS)
    cells = [name, state_of(plan, queued), "", "", "", ""]
    if rows:
        last = rows[-1]
        last_step = plan.last_step or round(last["step"] * (plan.num_epochs or 0) / last["epoch"])
        cells[2:5] = [f"{last['step']}/{last_step}", f"{last['loss']:.4f}", f"{last['tokens_per_second']:,.0f}"]
        if queued is not None and queued.state == "RUNNING":
            minutes = round(seconds_left(rows, last_step) / 60)
            cells[5] = f"{minutes // 1440}d {minutes // 60 % 24:02d}:{minutes % 60:02d}"
    attempts = read_attempts(plan.folder)
    cells.append(str(len(attempts) or ""))
    return cells


def status_table(profile: Profile, queue: dict[str, QueuedJob]) -> Table:
    """A row per job of the chain, in its order.

    Raises:
        UserError: when a recipe is wrong.
    """
    table = Table(title=f"{profile.recipes} -> {profile.run}", box=None, title_justify="left")
    for heading in ("job", "state", "step", "loss", "tokens/s", "ETA", "attempts"):
        table.add_column(heading, justify="left" if heading in ("job", "state") else "right", overflow="fold")
    for name in profile.jobs:
        table.add_row(*row_of(name, profile.plan(name), queue.get(name)))
    return table


def main() -> int:
    argparse.ArgumentParser(prog="python -m slurm.cluster_status", description=__doc__).parse_args()
    try:
        read_site_settings()
        profile = profile_from_environment()
        queue = queued_jobs(profile.run)
        console = Console() if sys.stdout.isatty() else Console(width=130)
        console.print(status_table(profile, queue))
        waiting = [name for name in profile.jobs if name in queue and queue[name].state == "PENDING"]
        print(f"next: {', '.join(waiting) or 'nothing'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
