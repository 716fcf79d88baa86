"""One view of the whole chain: what is done, what runs, how far it is, when all of it ends."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from chain.state import ChainState
from chain.steps import Step

_PLAIN_SECONDS = 20.0  # between two lines where no terminal can be redrawn
_TAIL_BYTES = 8192
_PRIOR_SECONDS = 120.0
_MARKS = {
    "done": "[green]✓[/green]",
    "running": "[yellow]▶[/yellow]",
    "failed": "[red]✗[/red]",
    "stopped": "[red]■[/red]",
}


def last_row(run_folder: Path | None) -> dict[str, Any] | None:
    """The last whole line of metrics.jsonl; reads the file's end only."""
    file = run_folder / "metrics.jsonl" if run_folder else None
    if file is None or not file.is_file():
        return None
    with file.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
        lines = stream.read().split(b"\n")[:-1]
    try:
        row: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:  # a line longer than the tail
        return None
    return row or None


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def seconds_left(step: Step | None, elapsed: float, waiting: Sequence[Step], pace: float) -> float:
    """`pace`: seconds that this machine took for one expected second so far."""
    left = sum(other.expected_seconds for other in waiting) * pace
    if step is None:
        return left
    row = last_row(step.run_folder)
    if row and step.last_step and row["step"] > 0 and elapsed > 0:
        first = row.get("first_step", 0)
        return left + elapsed * (step.last_step - row["step"]) / max(1, row["step"] - first)
    return left + max(0.0, step.expected_seconds * pace - elapsed)


class View:
    """A table that redraws itself on a terminal, lines elsewhere."""

    def __init__(self, steps: Sequence[Step], state: ChainState, todo: Sequence[Step]) -> None:
        self._steps, self._state, self._todo = steps, state, list(todo)
        self._pace_seconds, self._pace_expected = 0.0, 0.0
        self._current: tuple[Step, float] | None = None
        self._console = Console()
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
        self._pace_expected += step.expected_seconds
        self._todo.remove(step)
        self._current, self._next_line_at = None, 0.0
        if not self._live:
            print(f"{step.name}: done in {duration(seconds)}", flush=True)

    def _count(self, step: Step) -> str:
        return f"[{self._steps.index(step) + 1}/{len(self._steps)}]"

    def _eta(self) -> str:
        step, elapsed = self._current or (None, 0.0)
        # The first short stages alone say little about this machine.
        pace = (self._pace_seconds + _PRIOR_SECONDS) / (self._pace_expected + _PRIOR_SECONDS)
        return duration(seconds_left(step, elapsed, [other for other in self._todo if other is not step], pace))

    def _table(self) -> Table:
        table = Table(box=None, title=f"chain, eta {self._eta()}" if self._todo else "chain", title_justify="left")
        for heading in ("", "stage", "progress", "time"):
            table.add_column(heading, justify="right" if heading == "time" else "left")
        for step in self._steps:
            running = self._current is not None and self._current[0] is step
            record = self._state.steps.get(step.name)
            state = "running" if running else record.state if record and step not in self._todo else ""
            seconds = self._current[1] if running and self._current else record.seconds if record else 0.0
            table.add_row(
                _MARKS.get(state, "·"),
                step.name,
                _progress(step) if running else "",
                duration(seconds) if state else "",
            )
        return table


def _progress(step: Step) -> str:
    row = last_row(step.run_folder)
    if row is None:
        return ""
    of = f"/{step.last_step}" if step.last_step else ""
    return f"step {row['step']}{of}, loss {row['loss']:.3f}, {row['tokens_per_second']:,.0f} tokens/s"
