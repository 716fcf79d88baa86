"""Runs the steps one after the other, as process groups that a Ctrl-C ends in good order."""

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from chain.state import ChainState, StepRecord, is_done, reason_to_run, set_aside, write_state
from chain.steps import ChainError, Step
from foundation.files import open_lock
from foundation.fingerprint import Fingerprint
from foundation.secrets import for_jobs

PROGRAM = (sys.executable, "-m", "smollm3")  # whatever PATH says, the one that belongs to this chain
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 90.0  # a training step finishes its step and saves
_KILL_SECONDS = 5.0
_TAIL_LINES = 12  # of the log of a step that failed


class StepFailed(ChainError):
    """A step's command ended with an error."""


@contextmanager
def only_one(run: Path) -> Iterator[None]:
    """Raises ChainError when another chain works in this run folder."""
    run.mkdir(parents=True, exist_ok=True)
    with open_lock(run / "chain.lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ChainError(
                f"Another chain is at work in {run}. Wait for it, or choose another folder: RUN=..."
            ) from None
        yield


def run_step(
    step: Step, run: Path, keys: Mapping[str, Fingerprint], state: ChainState, tick: Callable[[Step, float], None]
) -> None:
    """Run the step's commands and note in chain.json how it went; output goes to `<run>/logs/<step>.log`.

    `tick(step, seconds)` is called about twice a second, with the time spent on the step in all attempts.

    Raises:
        StepFailed: with the end of the log.
        KeyboardInterrupt: after the step was asked to stop, and did.
    """
    record, key = state.steps.get(step.name), keys[step.name]
    if record is None or record.key != key.total:
        reason = reason_to_run(step, keys, state)
        if record is not None and (folder := set_aside(step, run)):
            print(f"{step.name} runs anew ({reason}); what was there lies in {folder}", flush=True)
        record = StepRecord(key=key.total, parts=dict(key.parts), state="running", seconds=0.0, started=_now())
        state.steps[step.name] = record
    record.state = "running"
    write_state(run, state)
    spent, started = record.seconds, time.monotonic()

    def elapsed() -> float:
        return spent + time.monotonic() - started

    log = run / "logs" / f"{step.name}.log"
    log.parent.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    record.state = "failed"  # unless the commands succeed
    try:
        for command in step.plan.commands:
            _run(command, log, lambda: tick(step, elapsed()))
        record.state, record.finished = "done", _now()
    except KeyboardInterrupt:
        record.state = "stopped"
        raise
    except StepFailed as error:
        raise StepFailed(f"{step.name} failed. {error}") from None
    finally:
        record.seconds = elapsed()
        write_state(run, state)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _run(arguments: Sequence[str], log: Path, tick: Callable[[], None]) -> None:
    typed = shlex.join(["smollm3", *arguments])
    with log.open("ab") as output:
        output.write(f"$ {typed}\n".encode())
        output.flush()
        # Its own session: a Ctrl-C reaches this process only, which then asks the whole group to stop.
        process = subprocess.Popen(
            [*PROGRAM, *arguments], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True, env=for_jobs() | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            while process.poll() is None:
                tick()
                time.sleep(_POLL_SECONDS)
            _end_group(process, lambda: False)
        except BaseException as reason:
            with _further_interrupts() as is_impatient:
                if isinstance(reason, KeyboardInterrupt):
                    text = f"Stopping: it may take {_GRACE_SECONDS:.0f} s to save. Ctrl-C again ends it at once."
                    print(text, flush=True)
                _end_group(process, is_impatient)
            raise
    if process.returncode:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        shown = "\n".join(tail)
        raise StepFailed(f"`{typed}` ended with status {process.returncode}; {log} ends with:\n{shown}")


@contextmanager
def _further_interrupts() -> Iterator[Callable[[], bool]]:
    """Within it a signal to stop raises nothing; what it gives says whether there was one."""
    seen: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, lambda number, frame: seen.append(number)) for number in numbers}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _end_group(process: "subprocess.Popen[bytes]", is_impatient: Callable[[], bool]) -> None:
    """Nothing of the group is left afterwards: the command may be gone while torchrun's workers still save."""
    for number, seconds in ((signal.SIGTERM, _GRACE_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        try:
            os.killpg(process.pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and (number == signal.SIGKILL or not is_impatient()):
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            process.wait()
            return


def pending(steps: Sequence[Step], keys: Mapping[str, Fingerprint], state: ChainState) -> list[Step]:
    """The steps that have to run; a step whose predecessor runs again is among them, because its key follows."""
    return [step for step in steps if not is_done(step, keys, state)]
