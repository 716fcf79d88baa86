"""One view of the whole chain: what is done, what runs, how far it is, when all of it ends."""

import sys
from collections.abc import Sequence

from rich.live import Live
from rich.table import Table
from rich.text import Text

from chain.state import ChainState
from chain.steps import Step
from foundation.terminal import Terminal
from jobs.progress import last_step, running, seconds_left

_PLAIN_SECONDS = 20.0  # between two lines where no terminal can be redrawn
_PRIOR_SECONDS = 120.0
_MARKS = {
    "done": Text("✓", "green"),
    "running": Text("▶", "yellow"),
    "failed": Text("✗", "red"),
    "stopped": Text("■", "red"),
}


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


class View:
    """A table that redraws itself on a terminal, lines elsewhere."""

    def __init__(self, steps: Sequence[Step], state: ChainState, todo: Sequence[Step]) -> None:
        self._steps, self._state, self._todo = steps, state, list(todo)
        # What a step took here before, unless it has never ended here.
        ended = {name: record.seconds for name, record in state.steps.items() if record.state == "done"}
        self._expected = {step.name: ended.get(step.name, step.plan.job.seconds) for step in todo}
        self._pace_seconds, self._pace_expected = 0.0, 0.0
        self._current: tuple[Step, float] | None = None
        self._console = Terminal()
        self._live = Live(console=self._console, auto_refresh=False) if sys.stdout.isatty() else None
        self._next_line_at = 0.0

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._current = None
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def tick(self, step: Step, elapsed: float) -> None:
        self._current = (step, elapsed)
        if self._live:
            self._live.update(self._table(), refresh=True)
        elif elapsed >= self._next_line_at:
            self._next_line_at = elapsed + _PLAIN_SECONDS
            print(f"{self._count(step)} {step.name}  {_progress(step)}  eta of all {self._eta()}".rstrip(), flush=True)

    def finished(self, step: Step, seconds: float) -> None:
        self._pace_seconds += seconds
        self._pace_expected += self._expected[step.name]
        self._todo.remove(step)
        self._current, self._next_line_at = None, 0.0
        if not self._live:
            print(f"{step.name}: done in {duration(seconds)}", flush=True)

    def _count(self, step: Step) -> str:
        return f"[{self._steps.index(step) + 1}/{len(self._steps)}]"

    def _eta(self) -> str:
        # The first short stages alone say little about this machine.
        pace = (self._pace_seconds + _PRIOR_SECONDS) / (self._pace_expected + _PRIOR_SECONDS)
        step, elapsed = self._current or (None, 0.0)
        left = sum(pace * self._expected[other.name] for other in self._todo if other is not step)
        return duration(left + (seconds_left(step.plan, elapsed, pace * self._expected[step.name]) if step else 0.0))

    def _table(self) -> Table:
        table = Table(box=None, title=f"chain, eta {self._eta()}" if self._todo else "chain", title_justify="left")
        for heading in ("", "stage", "progress", "time"):
            table.add_column(heading, justify="right" if heading == "time" else "left")
        for step in self._steps:
            is_running = self._current is not None and self._current[0] is step
            record = self._state.steps.get(step.name)
            state = "running" if is_running else record.state if record and step not in self._todo else ""
            seconds = self._current[1] if is_running and self._current else record.seconds if record else 0.0
            table.add_row(
                _MARKS.get(state, "·"),
                step.name,
                _progress(step) if is_running else "",
                duration(seconds) if state else "",
            )
        return table


def _progress(step: Step) -> str:
    begun, rows = running(step.plan)
    if not rows:
        return ""
    row, run = rows[-1], step.plan.runs[begun - 1]
    last = last_step(run, row)
    which = f"{run.folder.name}: " if len(step.plan.runs) > 1 else ""
    of = f"/{last}" if last else ""
    return f"{which}step {row['step']}{of}, loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
