"""The attempts of a job, and whether it may try again: `python -m slurm.attempts begin|end|job FOLDER`, for lib.sh.

`<folder>/attempts.json` lists every attempt with nodes, times, outcome and last step. The rules, in this order:

1. Finished: done. Failed with a message of its own (bad input, a loss that is not finite; exit code 2), or at a node
   check that cannot be believed (slurm/node_verdict.py): it would fail again.
2. Interrupted by Slurm (preemption, a node that failed): Slurm requeues by itself.
3. Stopped on request (time limit) with steps done since the attempt before it: again. Without: the limit is too short.
4. Crashed, or lost nodes: again, at most MAX_RETRIES times without a new checkpoint in between; what happened before a
   checkpoint counts no more after it. But the same failure at the same place (exception or signal, and step) twice
   since the last checkpoint is no accident: no third attempt. Before the first step, a killed or silent rank, a broken
   connection and an exit without a word can be: any bad node and any busy network looks like that.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from foundation.journal import METRICS_FILE, last_row
from slurm.failures import cause_of, first_failure, may_be_chance
from slurm.node_verdict import Verdict, read_verdict

MAX_RETRIES = 5  # so the sixth attempt in a row that crashes or loses nodes without a new checkpoint is the last
ATTEMPTS_FILE = "attempts.json"
NODE_CHECK = "node_check"  # folder in an attempt's logs
_BAD_INPUT = 2  # exit code of every command of this project for an error that the user has to mend
EXIT_CODES = {"done": 0, "fail": 1, "again": 75}  # 75 is EX_TEMPFAIL of sysexits.h

Result = Literal["finished", "failed", "stopped", "interrupted", "lost nodes", "crashed"]
Action = Literal["done", "again", "fail"]


@dataclass(frozen=True)
class Attempt:
    """One start of a Slurm job. Slurm keeps the job id over requeues and counts restarts from 0."""

    job_id: int
    restart: int
    nodes: str  # as Slurm writes them, n[1-48]
    started: str  # UTC, ISO 8601
    ended: str | None = None
    outcome: Result | None = None  # None: under way, or its batch script died with its node
    step: int = 0  # the last one done
    message: str = ""
    lost_nodes: str = ""  # comma-separated
    saved: int = 0  # step of the newest checkpoint when it ended
    failure: str = ""  # of a crash: its cause and place, as slurm/failures.py compares them; empty: like no other
    metrics_ns: int = 0  # when metrics.jsonl had last been written when it began


@dataclass(frozen=True)
class Ending:
    """What an attempt came to."""

    outcome: Result
    step: int
    message: str = ""
    cause: str = ""  # of a crash
    lost_nodes: str = ""


def read_attempts(folder: Path) -> list[Attempt]:
    """All attempts of a run folder, oldest first."""
    file = folder / ATTEMPTS_FILE
    return [Attempt(**entry) for entry in json.loads(file.read_text())] if file.is_file() else []


def begin(folder: Path, job_id: int, restart: int, nodes: str, runs: Sequence[Path] = ()) -> list[Attempt]:
    """Note a new attempt; one whose end nobody noted lost its head node.

    `runs`: the run folders of a job that trains several recipes one after the other; `folder` alone by default.
    """
    attempts, runs = read_attempts(folder), runs or [folder]
    if attempts and attempts[-1].outcome is None:
        message = "The batch script ended without a word: its node failed, or it was killed."
        attempts[-1] = _ended(attempts[-1], Ending("interrupted", last_step(runs), message), runs)
    attempts.append(Attempt(job_id, restart, nodes, _now(), metrics_ns=_metrics_ns(runs)))
    _write(folder, attempts)
    return attempts


def job_under_way(folder: Path) -> int | None:
    """The job whose attempt has no end yet: it is at work in the folder, or its batch script died."""
    attempts = read_attempts(folder)
    return attempts[-1].job_id if attempts and attempts[-1].outcome is None else None


def end(
    folder: Path,
    exit_status: int,
    stop_requested: bool,
    interrupted: bool,
    logs: Path | None = None,
    runs: Sequence[Path] = (),
) -> tuple[Attempt, Action, str]:
    """Note how the last attempt ended; returns it, what to do, and the reason in one line."""
    attempts, runs = read_attempts(folder), runs or [folder]
    ending = _what_happened(folder, exit_status, stop_requested, interrupted, logs, last_step(runs))
    attempts[-1] = _ended(attempts[-1], ending, runs)
    _write(folder, attempts)
    return attempts[-1], *decide(attempts)


def decide(attempts: list[Attempt]) -> tuple[Action, str]:
    """What to do after the last attempt, and why. Only attempts of its own job count: a new submission starts anew."""
    last = attempts[-1]
    earlier = [attempt for attempt in attempts[:-1] if attempt.job_id == last.job_id]
    if last.outcome == "finished":
        return "done", last.message or f"finished after step {last.step}"
    if last.outcome == "failed":
        return "fail", last.message
    if last.outcome == "interrupted":
        return "again", last.message
    if last.outcome == "stopped":
        if earlier and earlier[-1].outcome == "stopped" and earlier[-1].step >= last.step:
            return "fail", f"two attempts in a row were stopped at step {last.step}: the time limit is too short"
        return "again", f"stopped on request after step {last.step}"
    before = [a for a in earlier if a.outcome in ("crashed", "lost nodes") and a.saved >= last.saved]
    since = f"since the checkpoint of step {last.saved}" if last.saved else "without a checkpoint"
    if last.failure and any(attempt.failure == last.failure for attempt in before):
        return "fail", f"the same failure twice {since}, {last.failure}: {last.message}"
    if len(before) >= MAX_RETRIES:
        return "fail", f"{len(before) + 1} attempts crashed or lost nodes {since}, the last one: {last.message}"
    return "again", f"retry {len(before) + 1} of at most {MAX_RETRIES} {since}: {last.message}"


def _what_happened(
    folder: Path, exit_status: int, stop_requested: bool, interrupted: bool, logs: Path | None, last_step: int
) -> Ending:
    """The trainer's own outcome.json counts first, since torchrun's exit code does not carry its workers'."""
    file = folder / "outcome.json"
    outcome: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    step, told = outcome.get("step", last_step), outcome.get("outcome")
    if told == "finished" or (exit_status == 0 and not outcome):
        return Ending("finished", step)
    if told == "failed":
        return Ending("failed", step, outcome["message"])
    if interrupted:
        return Ending("interrupted", step, "Slurm ended the attempt: preempted, requeued or cancelled.")
    verdict = read_verdict(logs / NODE_CHECK) if logs else Verdict()
    if verdict.problem:
        return Ending("failed", step, verdict.problem)
    if verdict.not_started:
        return Ending("crashed", step, verdict.not_started)
    if verdict.lost:
        return Ending("lost nodes", step, verdict.reason, lost_nodes=",".join(verdict.lost))
    if told == "crashed":
        return Ending("crashed", step, outcome["message"], cause_of(outcome["message"], logs))
    if stop_requested or told == "stopped":
        return Ending("stopped", step)
    failure = first_failure(logs, exit_status)
    if failure.code == _BAD_INPUT:
        return Ending("failed", step, failure.message)
    return Ending("crashed", step, failure.message, failure.cause)


def last_step(runs: Sequence[Path]) -> int:
    """The step of the last complete line of metrics.jsonl, 0 before the first; summed over the runs."""
    return sum(map(_last_step, runs))


def _last_step(run: Path) -> int:
    row = last_row(run / METRICS_FILE)
    return int(row["step"]) if row else 0


def last_saved_step(runs: Sequence[Path]) -> int:
    """The step of the newest checkpoint, of pretraining or of post-training, 0 without any; summed over the runs."""
    return sum(map(_last_saved_step, runs))


def _last_saved_step(run: Path) -> int:
    written_last = [*run.glob("checkpoints/*/checkpoint.json"), *run.glob("checkpoints/*/trainer_state.json")]
    names = (re.fullmatch(r"(?:checkpoint-)?(\d+)", file.parent.name) for file in written_last)
    return max((int(name[1]) for name in names if name), default=0)


def _metrics_ns(runs: Sequence[Path]) -> int:
    """When a step was last written down, or a training that is about to begin opened the file (StepLog)."""
    return max((file.stat().st_mtime_ns for run in runs for file in run.glob(METRICS_FILE)), default=0)


def _ended(attempt: Attempt, ending: Ending, runs: Sequence[Path]) -> Attempt:
    failure = ""
    has_trained = _metrics_ns(runs) != attempt.metrics_ns
    if ending.outcome == "crashed" and ending.cause and (has_trained or not may_be_chance(ending.cause)):
        failure = f"{ending.cause} {f'in step {ending.step + 1}' if has_trained else 'before the first step'}"
    return dataclasses.replace(
        attempt,
        ended=_now(),
        outcome=ending.outcome,
        step=ending.step,
        message=ending.message,
        lost_nodes=ending.lost_nodes,
        saved=last_saved_step(runs),
        failure=failure,
    )


def _write(folder: Path, attempts: list[Attempt]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{ATTEMPTS_FILE}.partial"
    partial.write_text(json.dumps([dataclasses.asdict(attempt) for attempt in attempts], indent=1) + "\n")
    partial.replace(folder / ATTEMPTS_FILE)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m slurm.attempts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("begin", help="note a new attempt of the Slurm job that this runs in")
    under_way = commands.add_parser("job", help="print the id of the job whose attempt is under way, if one is")
    under_way.add_argument("folder", type=Path)
    last = commands.add_parser("end", help="note its end; exit code 0: done, 75: try again, 1: give up")
    for command in (first, last):
        command.add_argument("folder", type=Path)
        command.add_argument("runs", type=Path, nargs="*", help="run folders, if the job trains several recipes")
    last.add_argument("--exit-status", type=int, required=True)
    last.add_argument("--stop-requested", action="store_true", help="Slurm warned of the time limit")
    last.add_argument("--interrupted", action="store_true", help="Slurm ended the job")
    last.add_argument("--logs", type=Path, help="folder of the attempt's logs")
    options = parser.parse_args()
    if options.command == "job":
        print(job_under_way(options.folder) or "")
        return 0
    if options.command == "begin":
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        begin(options.folder, int(os.environ["SLURM_JOB_ID"]), restart, os.environ["SLURM_JOB_NODELIST"], options.runs)
        return 0
    _, action, reason = end(
        options.folder,
        options.exit_status,
        options.stop_requested,
        options.interrupted,
        options.logs,
        options.runs,
    )
    print({"done": "finished", "again": "trying again", "fail": "giving up"}[action] + f": {reason}")
    return EXIT_CODES[action]


if __name__ == "__main__":
    sys.exit(main())
