"""The attempts of a job, and whether it may try again: `python -m slurm.attempts begin|end|lost FOLDER`, for lib.sh.

`<folder>/attempts.json` lists every attempt with nodes, times, outcome and last step. The rules, in this order:

1. Finished: done. Failed with a message of its own (bad input, a loss that is not finite; exit code 2): it would fail
   again.
2. Stopped on request (time limit) with steps done since the attempt before it: again. Without: the limit is too short.
3. Interrupted by Slurm (preemption, a node that failed): Slurm requeues by itself. Nodes lost: again, without them,
   unless MAX_LOSSES attempts in a row lost nodes without a step between them.
4. Crashed: again, unless the previous crash was in the same step, or MAX_CRASHES are used up.
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

MAX_CRASHES = 5
MAX_LOSSES = 5
ATTEMPTS_FILE = "attempts.json"
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


def read_attempts(folder: Path) -> list[Attempt]:
    """All attempts of a run folder, oldest first."""
    file = folder / ATTEMPTS_FILE
    return [Attempt(**entry) for entry in json.loads(file.read_text())] if file.is_file() else []


def begin(folder: Path, job_id: int, restart: int, nodes: str) -> list[Attempt]:
    """Note a new attempt; one whose end nobody noted lost its head node."""
    attempts = read_attempts(folder)
    if attempts and attempts[-1].outcome is None:
        message = "The batch script ended without a word: its node failed, or it was killed."
        attempts[-1] = _ended(attempts[-1], "interrupted", last_step(folder), message)
    attempts.append(Attempt(job_id, restart, nodes, _now()))
    _write(folder, attempts)
    return attempts


def end(
    folder: Path,
    exit_status: int,
    stop_requested: bool,
    interrupted: bool,
    lost_nodes: str = "",
    logs: Path | None = None,
) -> tuple[Attempt, Action, str]:
    """Note how the last attempt ended; returns it, what to do, and the reason in one line."""
    attempts = read_attempts(folder)
    result, step, message = _what_happened(folder, exit_status, stop_requested, interrupted, lost_nodes, logs)
    attempts[-1] = dataclasses.replace(_ended(attempts[-1], result, step, message), lost_nodes=lost_nodes)
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
    if last.outcome == "stopped":
        if earlier and earlier[-1].outcome == "stopped" and earlier[-1].step >= last.step:
            return "fail", f"two attempts in a row were stopped at step {last.step}: the time limit is too short"
        return "again", f"stopped on request after step {last.step}"
    if last.outcome == "interrupted":
        return "again", last.message
    if last.outcome == "lost nodes":
        losses = [attempt for attempt in earlier if attempt.outcome == "lost nodes" and attempt.step >= last.step]
        if len(losses) + 1 >= MAX_LOSSES:
            return "fail", f"{MAX_LOSSES} attempts lost nodes before step {last.step + 1}: {last.message}"
        return "again", last.message
    crashes = [attempt for attempt in earlier if attempt.outcome == "crashed"]
    if crashes and crashes[-1].step == last.step:
        return "fail", f"step {last.step + 1} failed twice: {last.message}"
    if len(crashes) + 1 >= MAX_CRASHES:
        return "fail", f"{MAX_CRASHES} crashes, the last in step {last.step + 1}: {last.message}"
    return "again", f"crash {len(crashes) + 1} of at most {MAX_CRASHES}, in step {last.step + 1}: {last.message}"


def _what_happened(
    folder: Path, exit_status: int, stop_requested: bool, interrupted: bool, lost_nodes: str, logs: Path | None
) -> tuple[Result, int, str]:
    """The trainer's own outcome.json counts first, since torchrun's exit code does not carry its workers'."""
    file = folder / "outcome.json"
    outcome: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    step = outcome.get("step", last_step(folder))
    if outcome.get("outcome") == "finished" or (exit_status == 0 and not outcome):
        return "finished", step, ""
    if outcome.get("outcome") == "failed":
        return "failed", step, outcome["message"]
    if outcome.get("outcome") == "crashed" and not interrupted:
        return "crashed", step, outcome["message"]
    if interrupted:
        return "interrupted", step, "Slurm ended the attempt: preempted, requeued or cancelled."
    if stop_requested or outcome.get("outcome") == "stopped":
        return "stopped", step, ""
    if lost_nodes:
        return "lost nodes", step, f"nodes that do not answer or fail their check: {_with_reasons(lost_nodes, logs)}"
    code, reason = _cause(logs, exit_status)
    return "failed" if code == _BAD_INPUT else "crashed", step, reason


def _with_reasons(lost_nodes: str, logs: Path | None) -> str:
    """`n2 (GPU 3 ...), n5`: names, and what the check said of them."""
    log = logs / "node_check.log" if logs else None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log and log.is_file() else []
    said = dict(line.split(": ", 1) for line in lines if ": " in line)
    return ", ".join(f"{node} ({said[node]})" if node in said else node for node in lost_nodes.split(","))


def lost_nodes(folder: Path) -> list[str]:
    """All nodes that attempts of the current job lost; a new submission gives them another chance."""
    attempts = read_attempts(folder)
    mine = [attempt.lost_nodes.split(",") for attempt in attempts if attempt.job_id == attempts[-1].job_id]
    return sorted({node for nodes in mine for node in nodes if node})


def last_step(folder: Path) -> int:
    """The step of the last complete line of metrics.jsonl, 0 before the first."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


_ROOT_CAUSE = re.compile(  # torchrun's summary of the first worker that failed on its node
    r"Root Cause \(first observed failure\):\n\[\d+\]:\n\s*time\s*: (?P<time>\S+)\n\s*host\s*: \S+\n"
    r"\s*rank\s*: (?P<rank>\d+).*\n\s*exitcode\s*: (?P<code>-?\d+)"
)
_EXCEPTION = r"(?:[\w.]+(?:Error|Exception|Failure)|error): \S.*"


def _cause(logs: Path | None, exit_status: int) -> tuple[int, str]:
    """Exit code and reason, in one line, of the first failure on any node: other ranks only echo it."""
    files = sorted(logs.glob("*.log")) if logs else []
    texts = {file: file.read_text(encoding="utf-8", errors="replace") for file in files}
    roots = [(cause, file) for file, text in texts.items() for cause in _ROOT_CAUSE.finditer(text)]
    if roots:
        # Times are whole seconds; of failures in the same one, a killed rank is the cause of exceptions elsewhere.
        cause, file = min(roots, key=lambda root: (root[0]["time"], int(root[0]["code"]) > 0))
        code = int(cause["code"])
        where = f"rank {cause['rank']} on {file.stem}"
        if code < 0:
            return code, f"{where} was killed by {signal.Signals(-code).name} ({file})"
        raised = re.findall(rf"^\[rank{cause['rank']}\]: ({_EXCEPTION})", texts[file], re.MULTILINE)
        raised = raised or re.findall(rf"^{_EXCEPTION}", texts[file], re.MULTILINE)
        return code, f"{where}: {raised[0][:300] if raised else f'exit code {code}'} ({file})"
    for file, text in texts.items():
        if raised := re.findall(rf"^{_EXCEPTION}", text, re.MULTILINE):
            return exit_status, f"{raised[-1][:300]} ({file})"
    return exit_status, f"exit status {exit_status}" + (f", see {logs}" if logs else "")


def _ended(attempt: Attempt, outcome: Result, step: int, message: str) -> Attempt:
    return dataclasses.replace(attempt, ended=_now(), outcome=outcome, step=step, message=message)


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
    first.add_argument("folder", type=Path)
    last = commands.add_parser("end", help="note its end; exit code 0: done, 75: try again, 1: give up")
    last.add_argument("folder", type=Path)
    last.add_argument("--exit-status", type=int, required=True)
    last.add_argument("--stop-requested", action="store_true", help="Slurm warned of the time limit")
    last.add_argument("--interrupted", action="store_true", help="Slurm ended the job")
    last.add_argument("--lost-nodes", default="", help="nodes that no longer answer")
    last.add_argument("--logs", type=Path, help="folder of the attempt's logs")
    lost = commands.add_parser("lost", help="print the nodes that the job's attempts lost, comma-separated")
    lost.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "lost":
        print(",".join(lost_nodes(options.folder)))
        return 0
    if options.command == "begin":
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        begin(options.folder, int(os.environ["SLURM_JOB_ID"]), restart, os.environ["SLURM_JOB_NODELIST"])
        return 0
    _, action, reason = end(
        options.folder,
        options.exit_status,
        options.stop_requested,
        options.interrupted,
        options.lost_nodes,
        options.logs,
    )
    print({"done": "finished", "again": "trying again", "fail": "giving up"}[action] + f": {reason}")
    return EXIT_CODES[action]


if __name__ == "__main__":
    sys.exit(main())
