"""Slurm as the scheduler of a profile's jobs: sbatch with the scripts of this folder, squeue, and the site file."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from foundation.project import ROOT, project_file
from foundation.secrets import for_jobs
from jobs.plan import JobError, Place, Plan
from jobs.scheduler import History, QueuedJob, Resources, Submission
from jobs.table import job_of
from slurm.attempts import decide, read_attempts

SCRIPTS = Path("slurm")
SITE_FILE = Path("slurm/site.sh")
LOGS = Path("slurm/logs")  # of jobs, as the scripts' headers say; below the folder that they are submitted from
_COLUMNS = {"JobID": 20, "Name": 60, "State": 20, "Reason": 60, "Comment": 1000}  # widths, which squeue pads to


class Settings(BaseModel):
    """Keys of `<recipes>/cluster.yaml` that are for Slurm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sbatch: dict[str, dict[str, str | int]] = {}  # job, or `all` -> long options that replace headers of its script

    def options(self, job: str) -> list[str]:
        """sbatch options of a job, in the order in which later ones win."""
        merged = self.sbatch.get("all", {}) | self.sbatch.get(job, {})
        return [f"--{name}={value}" for name, value in merged.items()]


class Slurm:
    """The adapter, see jobs/scheduler.py. Jobs carry their run folder as comment, links resolved, as in lib.sh."""

    place: Place = "cluster"

    def __init__(self, settings: Mapping[str, Any], *, in_job: bool = False) -> None:
        """Takes what the site file exports into the environment, unless a job's script has done so.

        Raises:
            pydantic.ValidationError: for settings that are not Slurm's.
            JobError: when the site file cannot be read as a shell script.
        """
        self._settings = Settings.model_validate(settings)
        if not in_job:
            _read_site_settings()

    def check(self) -> None:
        """Raises JobError when nobody has said which partition, modules and Python to use."""
        file = _site_file()
        if not file.is_file():
            raise JobError(
                f"There is no site file {file} with this cluster's partition, account, modules and Python. "
                f"Copy {project_file('slurm/site.sh.example')} to {SITE_FILE} and edit it."
            )

    def resources(self, name: str, options: Sequence[str] = ()) -> Resources:
        """What sbatch will ask for: the script's header, overruled by the profile's options and these."""
        script = project_file(script_of(name)).read_text(encoding="utf-8")
        header = re.findall(r"^#SBATCH\s+(--\S+)", script, re.MULTILINE)
        nodes, gpus, asked = 1, 0, {}
        for option in [*header, *self._settings.options(name), *_long_options(options)]:
            key, _, value = option.partition("=")
            asked[key] = value
            if key == "--nodes":
                if not value.isdigit():
                    raise JobError(
                        f"--nodes={value}: give one number; the layout of a run needs exactly so many nodes."
                    )
                nodes = int(value)
            elif key in ("--gres", "--gpus-per-node"):
                count = re.fullmatch(r"(?:gpu:)?(?:[A-Za-z][\w.-]*:)?(\d+)", value)
                gpus = int(count[1]) if count else 0
        _check_time_limit(name, asked.get("--time", ""), asked.get("--signal", ""))
        return Resources(nodes, gpus)

    def queue(self, run: Path) -> dict[str, QueuedJob]:
        fields = ",".join(f"{column}:{width}" for column, width in _COLUMNS.items())
        jobs = {}
        for line in _slurm("squeue", "--me", "--noheader", f"--Format={fields}").splitlines():
            job_id, name, state, reason, comment = _cut(line)
            if comment == str(run.resolve()):
                waits = state == "PENDING"
                jobs[name] = QueuedJob(job_id, name, state.lower(), waits, reason if waits else "")
        return jobs

    def submit(self, submission: Submission) -> str:
        after = submission.after
        options = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        name = submission.plan.name
        return self.sbatch(name, submission.run, [*options, *submission.options], submission.overrides)

    def sbatch(
        self, job: str, run: Path, options: Sequence[str], overrides: Sequence[str] = (), *, name: str = ""
    ) -> str:
        """Put the job's script into the queue, with `options` behind the profile's; `name` defaults to the job's."""
        named = [f"--job-name={name or job}", f"--comment={run.resolve()}"]
        profile = self._settings.options(job)
        LOGS.mkdir(parents=True, exist_ok=True)  # Slurm does not, and the job would fail without a word
        script = str(project_file(script_of(job)))
        answer = _slurm("sbatch", "--parsable", *named, *profile, *options, script, *overrides)
        return answer.split(";")[0].strip()

    def output(self, name: str, job_id: str) -> str:
        return f"{LOGS}/{name}-{job_id}.out"

    def history(self, plan: Plan) -> History:
        attempts = read_attempts(plan.folder)
        if not attempts or attempts[-1].outcome is None:
            return History(len(attempts))
        action, reason = decide(attempts)
        return History(len(attempts), f"failed: {reason}" if action == "fail" else f"left the queue: {reason}")


def script_of(name: str) -> Path:
    return SCRIPTS / f"{job_of(name).script or name}.sh"


def _check_time_limit(name: str, limit: str, warning: str) -> None:
    """Raises JobError for a limit that is over when Slurm's warning comes: every attempt would save at its start."""
    told = re.fullmatch(r"\S+@(\d+)", warning)
    seconds = _seconds(limit)
    if told and seconds is not None and seconds <= int(told[1]):
        raise JobError(
            f"{name}: --time={limit} is no longer than the {int(told[1])} s before its end at which Slurm tells the "
            f"job to save (--signal={warning}). Ask for more time, or for a later warning, as with --signal=B:USR1@60."
        )


def _seconds(limit: str) -> int | None:
    """Of a time limit as sbatch takes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS; None for others."""
    found = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", limit)
    if not found:
        return None
    days, *parts = (int(part) if part else None for part in found.groups())
    first, second, third = parts
    if days is not None:
        return 86400 * days + 3600 * (first or 0) + 60 * (second or 0) + (third or 0)
    if third is not None:
        return 3600 * (first or 0) + 60 * (second or 0) + third
    return 60 * (first or 0) + (second or 0)


def _long_options(options: Sequence[str]) -> list[str]:
    """`-N 2`, `-N2` and `--nodes 2` as `--nodes=2`, `-t 60` as `--time=60`."""
    text = "\n".join(options)
    text = re.sub(r"^-N\n?(?=\d)", "--nodes=", text, flags=re.MULTILINE)
    text = re.sub(r"^-t\n?(?=\d)", "--time=", text, flags=re.MULTILINE)
    return re.sub(r"^(--(?:nodes|gres|gpus-per-node|time|signal))\n", r"\1=", text, flags=re.MULTILINE).split("\n")


def _cut(line: str) -> list[str]:
    """The cells of a line of squeue."""
    cells, start = [], 0
    for width in _COLUMNS.values():
        cells.append(line[start : start + width].strip())
        start += width
    return cells


def _slurm(*command: str) -> str:
    # Slurm hands all of it to the job. One that submits another one must not hand down what Slurm told it about itself.
    environment = {
        key: value for key, value in for_jobs().items() if not key.startswith("SLURM") or key == "SLURM_CONF"
    }
    if not Path.cwd().samefile(ROOT):  # where a job starts; Slurm runs a copy of the script, which could find neither
        environment |= {"SMOLLM3_SCRIPTS": str(project_file("slurm")), "SMOLLM3_PYTHON": sys.executable}
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except FileNotFoundError:
        raise JobError(
            f"{command[0]} is not on this machine. Log in to a Slurm cluster, or try slurm/dev-cluster up."
        ) from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip()
        if "configuration source" in said or "Unable to contact" in said:
            said = f"{said.splitlines()[-1]}. No cluster answers here: log in to one, or start slurm/dev-cluster up"
        raise JobError(f"{command[0]} refused: {said}") from None
    return answer.stdout


def _site_file() -> Path:
    return Path(os.environ.get("SMOLLM3_SITE", SITE_FILE))


def _read_site_settings() -> None:
    """Take what the site file exports (SBATCH_PARTITION, SBATCH_ACCOUNT, ...) into the environment.

    Raises:
        JobError: when the file cannot be read as a shell script.
    """
    file = _site_file()
    if file.is_file():
        source = ("bash", "-euc", 'source "$1" >&2; exec env --null', "bash", str(file))
        answer = subprocess.run(source, capture_output=True, text=True)
        if answer.returncode != 0:
            raise JobError(f"{file} is not a shell script that runs: {answer.stderr.strip()}")
        os.environ.update(line.partition("=")[::2] for line in answer.stdout.split("\0") if line)
