"""Where a profile's jobs are in a scheduler's queue: state, step, loss, speed, ETA and attempts of each."""

from rich.table import Table

from jobs.plan import Plan
from jobs.profile import Profile
from jobs.progress import last_step, running, seconds_to_train
from jobs.scheduler import QueuedJob, Scheduler


def state_of(plan: Plan, queued: QueuedJob | None, reason: str) -> str:
    """One phrase: done, queued and why, or why it is not."""
    if queued is not None:
        why = f" ({queued.reason})" if queued.reason else ""
        return f"{queued.state}{why}, job {queued.job_id}"
    if plan.is_done:
        return "done"
    return reason or "not submitted"


def _row(plan: Plan, queued: QueuedJob | None, scheduler: Scheduler) -> list[str]:
    history = scheduler.history(plan)
    cells = [plan.name, state_of(plan, queued, history.reason), "", "", "", "", str(history.attempts or "")]
    begun, rows = running(plan)
    if rows:
        last, row = last_step(plan.runs[begun - 1], rows[-1]), rows[-1]
        of = f"/{last}" if last else ""
        cells[2:5] = [f"{row['step']}{of}", f"{row['loss']:.4f}", f"{row['tokens_per_second']:,.0f}"]
        if last and queued is not None and not queued.waits:
            minutes = round(seconds_to_train(rows, last) / 60)
            cells[5] = f"{minutes // 1440}d {minutes // 60 % 24:02d}:{minutes % 60:02d}"
    return cells


def status_table(profile: Profile, scheduler: Scheduler, queue: dict[str, QueuedJob]) -> Table:
    """A row per job, in the order of the chain.

    Raises:
        UserError: when a recipe is wrong.
    """
    table = Table(title=f"{profile.recipes} -> {profile.run}", box=None, title_justify="left")
    for heading in ("job", "state", "step", "loss", "tokens/s", "ETA", "attempts"):
        table.add_column(heading, justify="left" if heading in ("job", "state") else "right", overflow="fold")
    for name in profile.jobs_in(scheduler.place):
        table.add_row(*_row(profile.plan(name), queue.get(name), scheduler))
    return table


def next_jobs(profile: Profile, queue: dict[str, QueuedJob]) -> list[str]:
    """What waits in the queue, in the order of the chain."""
    return [name for name in profile.jobs if name in queue and queue[name].waits]
