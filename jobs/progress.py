"""How far the trainings of a job are, and how long they will take: from the last rows of metrics.jsonl."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from foundation.journal import METRICS_FILE, last_rows, tokens_per_step
from jobs.plan import Plan, TrainingRun

_PACE_STEPS = 30  # whose median pace counts


def running(plan: Plan) -> tuple[int, list[dict[str, Any]]]:
    """(how many of the job's trainings have begun, the last rows of the latest)."""
    begun = [rows for run in plan.runs if (rows := last_rows(run.folder / METRICS_FILE, _PACE_STEPS))]
    return len(begun), begun[-1] if begun else []


def last_step(run: TrainingRun, row: Mapping[str, Any]) -> int | None:
    """The number of the training's last step, as its recipe says or as the epochs done so far do."""
    if run.last_step or not run.epochs or not row.get("epoch"):
        return run.last_step
    return round(row["step"] * run.epochs / row["epoch"])


def seconds_to_train(rows: Sequence[Mapping[str, Any]], last: int) -> float:
    """Of the steps up to `last`, at the speed of the last ones: their median, which passes over a slow single step."""
    paces = [tokens / row["tokens_per_second"] for row, tokens in zip(rows, tokens_per_step(rows), strict=True)]
    return float((last - rows[-1]["step"]) * statistics.median(paces))


def seconds_left(plan: Plan, elapsed: float, expected: float) -> float:
    """Of a running job: by the speed of its training's last steps, else by what it is `expected` to take in all."""
    begun, rows = running(plan)
    last = last_step(plan.runs[begun - 1], rows[-1]) if rows else None
    if last is None:
        return max(0.0, expected - elapsed)
    return seconds_to_train(rows, last) + expected * (len(plan.runs) - begun) / len(plan.runs)
