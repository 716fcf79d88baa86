"""How far the trainings of a job are, and how long they will take: from the last rows of metrics.jsonl."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.plan import Plan, TrainingRun

_TAIL_BYTES = 8192


def last_rows(run_folder: Path) -> list[dict[str, Any]]:
    """The last whole lines of metrics.jsonl; reads the file's end only."""
    file = run_folder / "metrics.jsonl"
    if not file.is_file():
        return []
    with file.open("rb") as stream:
        start = max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES)
        stream.seek(start)
        lines = stream.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines[1:] if start else lines)]  # the tail may start within a line


def running(plan: Plan) -> tuple[int, list[dict[str, Any]]]:
    """(how many of the job's trainings have begun, the last rows of the latest)."""
    begun = [rows for run in plan.runs if (rows := last_rows(run.folder))]
    return len(begun), begun[-1] if begun else []


def last_step(run: TrainingRun, row: Mapping[str, Any]) -> int | None:
    """The number of the training's last step, as its recipe says or as the epochs done so far do."""
    if run.last_step or not run.epochs or not row.get("epoch"):
        return run.last_step
    return round(row["step"] * run.epochs / row["epoch"])


def seconds_to_train(rows: Sequence[Mapping[str, Any]], last: int) -> float:
    """Of the steps up to `last`, at the speed of the last ones: their median, which passes over a slow single step."""
    # Both kinds of training count tokens from their first step on.
    paces = [row["tokens"] / row["step"] / row["tokens_per_second"] for row in rows]
    return float((last - rows[-1]["step"]) * statistics.median(paces))


def seconds_left(plan: Plan, elapsed: float, expected: float) -> float:
    """Of a running job: by the speed of its training's last steps, else by what it is `expected` to take in all."""
    begun, rows = running(plan)
    last = last_step(plan.runs[begun - 1], rows[-1]) if rows else None
    if last is None:
        return max(0.0, expected - elapsed)
    return seconds_to_train(rows, last) + expected * (len(plan.runs) - begun) / len(plan.runs)
