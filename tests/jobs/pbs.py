"""An adapter for a scheduler whose commands are those of PBS, for jobs that run the commands of the table."""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.plan import JobError, Place, Plan
from jobs.scheduler import History, QueuedJob, Resources, Submission


class Pbs:
    place: Place = "chain"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """`queue_name`, and `program` for what takes the place of `python -m smollm3`."""
        self._queue_name = settings["queue_name"]
        self._program = settings.get("program", [sys.executable, "-m", "smollm3"])

    def check(self) -> None:
        _call("qstat", "-Q", self._queue_name)

    def resources(self, name: str, options: Sequence[str] = ()) -> Resources:
        return Resources(nodes=1, gpus_per_node=0)

    def queue(self, run: Path) -> dict[str, QueuedJob]:
        rows = [line.split("\t") for line in _call("qstat", "-u", "me").splitlines()]
        return {
            name: QueuedJob(job_id, name, {"Q": "queued", "H": "held", "R": "running"}[state], state != "R")
            for job_id, name, state, folder in rows
            if folder == str(run.absolute())
        }

    def submit(self, submission: Submission) -> str:
        after = ["-W", f"depend=afterok:{':'.join(submission.after)}"] if submission.after else []
        folder = str(submission.run.absolute())
        script = "\n".join(["set -e", *(shlex.join([*self._program, *words]) for words in submission.commands)])
        options = ["-N", submission.plan.name, "-q", self._queue_name, "-A", folder, *after, *submission.options]
        return _call("qsub", *options, text=script).strip()

    def output(self, name: str, job_id: str) -> str:
        return f"{name}.o{job_id}"

    def history(self, plan: Plan) -> History:
        return History()


def _call(*command: str, text: str = "") -> str:
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise JobError(f"{command[0]} refused: {answer.stderr.strip()}")
    return answer.stdout
